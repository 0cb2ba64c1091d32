"""python -m dualcl_jax.embed and dualcl_jax.embed: the files, resuming, near duplicates, and errors."""

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import dualcl_jax
from dualcl_jax import embed, export
from dualcl_jax.data.images import photo_patches
from dualcl_jax.evaluators import embed_all, feature_file
from dualcl_jax.evaluators.encoder_source import EncoderSource
from dualcl_jax.evaluators.measures import neighbours
from dualcl_jax.system.errors import UserError
from tests.support.runs import Finished, Trainer, write_npz


@pytest.fixture(scope='module')
def workdir(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp('embedded') / 'run'
    trainer.run(workdir, 'model.name=tiny', 'train.steps=4', 'data.image_size=16')
    return workdir


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 photographs in two classes, two exact copies, a recompressed copy, and a file that is no image."""
    root = tmp_path_factory.mktemp('folder')
    photos = photo_patches.load().test.examples(np.arange(0, 2160, 120))
    for number, photo in enumerate(photos):
        path = root / ('ab'[number % 2]) / f'{number:02d}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photo).save(path)
    for number in (3, 4):
        (root / f'b/copy_{number}.png').write_bytes((root / 'ab'[number % 2] / f'{number:02d}.png').read_bytes())
    Image.fromarray(photos[5]).resize((40, 40)).save(root / 'a' / 'small.jpg', quality=85)
    (root / 'a' / 'broken.jpg').write_bytes(b'\xff\xd8\xff nothing')
    return root


@pytest.fixture
def run(in_process, workdir: Path, folder: Path):
    def main(output: Path, *flags: str, source: str = '') -> Finished:
        given = [source or f'--workdir={workdir}', f'--data={folder}', f'--output={output}', *flags]
        return in_process(embed.main, *given)

    return main


def read(path: Path) -> list[list[str]]:
    """The lines of a CSV file."""
    return list(csv.reader(path.read_text().splitlines()))


def last_line(done: Finished) -> dict:
    assert done.status == 0, done
    return json.loads(done.out.splitlines()[-1])


def test_every_format(run, workdir: Path, folder: Path, tmp_path: Path, in_process) -> None:
    for suffix in ('npz', 'csv', 'parquet'):
        done = run(tmp_path / f'f.{suffix}')
        assert last_line(done) == {'output': f'{tmp_path}/f.{suffix}', 'examples': 21, 'features': 8}
        assert 'left out: 1 files: a/broken.jpg' in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ['f.csv', 'f.npz', 'f.parquet']
    arrays = np.load(tmp_path / 'f.npz')
    files, labels, features = arrays['files'].tolist(), arrays['labels'], arrays['features']
    assert files == sorted(files)
    assert [arrays['class_names'][label] for label in labels] == [name[0] for name in files]
    table = pyarrow.parquet.read_table(tmp_path / 'f.parquet')
    assert table['file'].to_pylist() == files
    assert table['label'].to_pylist() == labels.tolist()
    assert table['class'].to_pylist() == [name[0] for name in files]
    np.testing.assert_array_equal(np.array(table['features'].to_pylist(), np.float32), features)
    rows = read(tmp_path / 'f.csv')
    assert rows[0] == ['file', 'label', 'class', *(f'f{column}' for column in range(8))]
    assert [row[0] for row in rows[1:]] == files
    np.testing.assert_array_equal(np.array([row[3:] for row in rows[1:]], np.float32), features)
    exact = [row for row, name in enumerate(files) if name in ('b/03.png', 'b/copy_3.png')]
    np.testing.assert_array_equal(features[exact[0]], features[exact[1]])
    found = dualcl_jax.embed(workdir, data=folder)
    assert (found.files, found.class_names) == (files, ('a', 'b'))
    np.testing.assert_array_equal(found.features, features)
    encoder = tmp_path / 'encoder.safetensors'
    in_process(export.main, f'--workdir={workdir}', '--format=safetensors', f'--output={encoder}')
    last_line(run(tmp_path / 'g.npz', source=f'--encoder={encoder}'))
    np.testing.assert_allclose(np.load(tmp_path / 'g.npz')['features'], features, rtol=1e-5, atol=1e-6)


def test_arrays(in_process, workdir: Path, tmp_path: Path) -> None:
    """Larger than one block and part, in another size than the encoder's; as those of their file."""
    images, labels = np.random.default_rng(0).integers(0, 256, (4100, 18, 18, 3), np.uint8), np.arange(4100) % 3
    np.savez(tmp_path / 'mine.npz', train_images=images, train_labels=labels)
    expected = dualcl_jax.embed(workdir, data=tmp_path / 'mine.npz')
    found = dualcl_jax.embed(workdir, data=(images, labels), output=tmp_path / 'found.npz')
    for name in ('features', 'labels'):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.files[-1], found.class_names) == ('train/4099', ('0', '1', '2'))
    np.testing.assert_array_equal(np.load(tmp_path / 'found.npz')['features'], found.features)


def test_own_data_and_layers(in_process, workdir: Path, tmp_path: Path) -> None:
    done = in_process(embed.main, f'--workdir={workdir}', f'--output={tmp_path}/f.npz', '--layer=projection')
    assert last_line(done) == {'output': f'{tmp_path}/f.npz', 'examples': 320, 'features': 16}
    query = np.load(tmp_path / 'f.npz')
    assert query['files'][[0, 255, 256, 319]].tolist() == ['train/0', 'train/255', 'test/0', 'test/63']
    momentum = dualcl_jax.embed(workdir, layer='projection', momentum=True)
    assert np.abs(momentum.features - query['features']).max() > 0


def test_files_of_a_folder_without_the_flag_data(in_process, workdir: Path, folder: Path, tmp_path: Path) -> None:
    fields = ('--config.data.name=folder', f'--config.data.path={folder}', '--config.data.test_fraction=0.2')
    done = in_process(embed.main, f'--workdir={workdir}', f'--output={tmp_path}/f.csv', *fields)
    rows = read(tmp_path / 'f.csv')[1:]
    assert last_line(done)['examples'] == len(rows) == 19  # without copies
    assert [row[0][0] for row in rows] == [row[2] for row in rows]  # the class is the folder
    assert {'a/small.jpg', 'b/05.png'} <= {row[0] for row in rows}


def test_resumes(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last_line(run(tmp_path / 'whole.npz'))
    monkeypatch.setattr(embed_all, 'PART', 8)
    calls, encode = [], EncoderSource.embed

    def interrupted(self, encoder, examples, rows, advance):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, encoder, examples, rows, advance)

    monkeypatch.setattr(EncoderSource, 'embed', interrupted)
    assert run(tmp_path / 'f.npz').status == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ['f.npz.parts', 'whole.npz']
    (tmp_path / 'f.npz.parts' / '000001.npy').write_bytes(b'torn')
    done = run(tmp_path / 'f.npz')
    assert '2 of 3 parts are done already' in done.out
    assert calls == [8, 8, 5, 8, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['f.npz', 'whole.npz']
    assert (tmp_path / 'f.npz').read_bytes() == (tmp_path / 'whole.npz').read_bytes()


def test_an_interrupted_search_does_not_embed_again(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(neighbours, 'nearest_others', lambda *_: signal.raise_signal(signal.SIGINT))
        assert run(tmp_path / 'f.npz', '--near_duplicates').status == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ['f.npz', 'f.npz.parts']
    assert '1 of 1 parts are done already' in run(tmp_path / 'f.npz', '--near_duplicates').out
    assert not (tmp_path / 'f.npz.parts').exists()


def test_one_example_has_no_neighbours(workdir: Path, in_process, tmp_path: Path) -> None:
    np.savez(tmp_path / 'one.npz', images=np.zeros((1, 16, 16, 3), np.uint8))
    given = (f'--workdir={workdir}', f'--data={tmp_path}/one.npz', f'--output={tmp_path}/f.npz')
    assert 'need at least two examples' in in_process(embed.main, *given, '--outliers').err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['one.npz']


def test_names_that_an_npz_file_would_repeat(
    run, workdir: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_file, 'MOST_NAME_BYTES', 100)
    feature_file.check_names('f.npz', ['as long as the others'] * 1000)  # much, but without padding
    monkeypatch.setattr(feature_file, 'MOST_PADDING', 1)
    done = run(tmp_path / 'f.npz')
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert 'name it .parquet or .csv' in done.err
    assert not list(tmp_path.iterdir())
    assert last_line(run(tmp_path / 'f.csv'))['examples'] == 21
    assert len(dualcl_jax.embed(workdir, data=folder).files) == 21  # writes no file


def test_parts_of_another_encoder_are_not_used(run, tmp_path: Path) -> None:
    parts = tmp_path / 'f.npz.parts'
    parts.mkdir()
    (parts / 'parts.json').write_text('{"encoder": "other"}')
    np.save(parts / '000000.npy', np.zeros((21, 8), np.float32))
    done = run(tmp_path / 'f.npz')
    assert 'parts of another encoder or of other data' in done.out
    assert np.abs(np.load(tmp_path / 'f.npz')['features']).min(axis=1).max() > 0


def test_near_duplicates_and_outliers(run, tmp_path: Path) -> None:
    found = last_line(run(tmp_path / 'f.csv', '--near_duplicates=0.9', '--outliers=0'))
    rows = read(tmp_path / 'f.near_duplicates.csv')
    assert rows[0] == ['file', 'other', 'similarity']
    pairs = [tuple(row[:2]) for row in rows[1:]]
    assert set(pairs) >= {('b/03.png', 'b/copy_3.png'), ('a/04.png', 'b/copy_4.png')}
    assert found['near_duplicates'] == len(pairs)
    scores = [float(row[1]) for row in read(tmp_path / 'f.outliers.csv')[1:]]
    assert len(scores) == found['outliers']
    assert scores == sorted(scores, reverse=True)
    page = (tmp_path / 'f.html').read_text()
    assert page.count('<img') == 2 * len(pairs) + len(scores)
    assert '://' not in page
    assert set(found['written']) == {f'{tmp_path}/f.{end}' for end in ('near_duplicates.csv', 'outliers.csv', 'html')}


def test_columns_of_a_table_of_labels(run, folder: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob('*.png'))
    lines = ['file,wrong,right', *(f'{name},one,{name[-5]}' for name in names)]
    (tmp_path / 't.csv').write_text('\n'.join(lines))
    labels = (f'--labels={tmp_path}/t.csv', '--config.data.label_column=right')
    last_line(run(tmp_path / 'f.npz', *labels))
    arrays = np.load(tmp_path / 'f.npz')
    classes = [arrays['class_names'][label] for label in arrays['labels'] if label >= 0]
    assert classes == [name[-5] for name in arrays['files'] if name.endswith('.png')]


FIELDS = {
    '--config.data.path=other': 'contradicts --data=',
    '--config.data.name=npz': 'contradicts --data=',
    '--labels=none --config.data.labels=auto': 'contradicts --labels=none',
    '--config.data.limit=5': 'has no effect with --data=',
    '--config.data.image_size=5': 'belongs to the encoder',
    '--config.data.stored_size=-5': 'config.data.stored_size=-5: must be at least 0',
    '--config.data.label_colunm=a': 'did you mean data.label_column?',
}


@pytest.mark.parametrize('flags', FIELDS)
def test_fields_without_an_effect(run, flags: str, tmp_path: Path) -> None:
    done = run(tmp_path / 'f.npz', *flags.split())
    assert (done.status, len(done.err.splitlines())) == (2, 1), done
    assert FIELDS[flags] in done.err


def test_home_directory(
    in_process, workdir: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'run').symlink_to(workdir)
    (tmp_path / 'photos').symlink_to(folder)
    given = ('--workdir=~/run', '--output=~/e.safetensors', '--format=safetensors')
    assert in_process(export.main, *given).status == 0
    assert in_process(embed.main, '--encoder=~/e.safetensors', '--data=~/photos', '--output=~/f.npz').status == 0
    records = dualcl_jax.evaluate('~/run', protocols='structure', output='~/results')
    assert dualcl_jax.load_encoder('~/e.safetensors').description.features == 8
    assert records
    found = sorted(path.name for path in tmp_path.iterdir() if path.name != '.cache')
    assert found == ['e.safetensors', 'f.npz', 'photos', 'results', 'run']


def test_limit_of_an_npz_file(workdir: Path, in_process, tmp_path: Path) -> None:
    np.savez(tmp_path / 'new.npz', images=np.zeros((9, 16, 16, 3), np.uint8), more=np.zeros(2))
    given = (f'--workdir={workdir}', f'--data={tmp_path}/new.npz', f'--output={tmp_path}/f.npz')
    done = in_process(embed.main, *given, '--config.data.limit=5')
    assert last_line(done)['examples'] == 5
    assert 'left out: 1 other arrays (more)' in done.out


def test_other_data_than_those_of_the_run(workdir: Path, in_process, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(workdir, tmp_path / 'run'))
    config = json.loads((copy / 'config.json').read_text())
    config['data']['path'] = str(write_npz(tmp_path / 'other.npz', seed=7))
    (copy / 'config.json').write_text(json.dumps(config))
    done = in_process(embed.main, f'--workdir={copy}', f'--output={tmp_path}/f.npz')
    assert done.status == 2
    assert f'not the data that --workdir={copy} was trained on' in done.err
    assert not (tmp_path / 'f.npz').exists()


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--output=f.npz'], ['either a workdir or an encoder']),
        (['--encoder=e', '--output=f.npz'], ['--data']),
        (['--workdir=W', '--output=f.npz'], ['no run with a checkpoint']),
        (['--encoder=e', '--data=d', '--momentum', '--output=f.npz'], ['--momentum', 'leave them out']),
        (['--workdir=W', '--near_duplicates=2', '--output=f.npz'], ['--near_duplicates=2', 'at most 1']),
        (['--workdir=W', '--outliers=nan', '--output=f.npz'], ['--outliers=nan', 'at least 0']),
        (['--workdir=W', '--config.seed=2', '--output=f.npz'], ['--config.seed=2', 'only fields of config.data']),
    ],
)
def test_mistakes(in_process, flags: list[str], said: list[str], tmp_path: Path) -> None:
    done = in_process(embed.main, *flags)
    assert (done.status, done.out) == (2, '')
    assert all(word in done.err for word in said), done


def test_mistakes_of_data(run, workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'name it .parquet, .npz or .csv' in run(tmp_path / 'f.txt').err
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(UserError, match='no image of at least'):
        dualcl_jax.embed(workdir, data=empty)
    gray = tmp_path / 'gray.npz'
    np.savez(gray, images=np.zeros((9, 16, 16), np.uint8))
    with pytest.raises(UserError, match='1 channels, but the encoder of'):
        dualcl_jax.embed(workdir, data=gray)
    with pytest.raises(UserError, match=r'--data=.*missing: no such file or folder; correct the path'):
        dualcl_jax.embed(workdir, data=tmp_path / 'missing')
    with pytest.raises(UserError, match='--labels=none: only for a folder of images'):
        dualcl_jax.embed(workdir, data=gray, labels='none')
    with pytest.raises(UserError, match='data: 3 channels as stored, but the encoder takes 3 of 8 bits; give'):
        dualcl_jax.embed(workdir, data=np.zeros((9, 16, 16, 3), np.float32))
    with pytest.raises(UserError, match='data: list; give a path, an array of images'):
        dualcl_jax.embed(workdir, data=['a sentence'])
    with pytest.raises(UserError, match="labels: NoneType; give 'auto'"):
        dualcl_jax.embed(workdir, data=empty, labels=None)  # type: ignore[arg-type]


def test_a_table_as_a_path_and_a_folder_named_as_a_file(workdir: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / 'photos.npz').symlink_to(folder)
    (tmp_path / 't.csv').write_text('file,label\na/00.png,one\nb/01.png,two\n')
    found = dualcl_jax.embed(workdir, data=tmp_path / 'photos.npz', labels=tmp_path / 't.csv')
    assert (len(found.files), found.class_names) == (21, ('one', 'two'))
