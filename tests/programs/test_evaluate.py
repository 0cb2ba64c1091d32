"""python -m dualcl_jax.evaluate: its files, its last line, reproducibility, and errors."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import default
from dualcl_jax.data import Splits
from dualcl_jax.evaluators import evaluate as evaluation
from dualcl_jax.evaluators.encoder_source import EncoderSource
from dualcl_jax.evaluators.protocols import PROTOCOLS
from dualcl_jax.models.exports import FORMATS
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.export import describe
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.evaluations import printed_records
from tests.support.runs import Finished, contents, write_npz

QUICK = (
    '--config.linear.epochs=5',
    '--config.linear.learning_rates=0.1,0.3',
    '--config.linear.weight_decays=0',
    '--config.finetune.epochs=1',
    '--config.semi.fractions=0.1',
    '--config.semi.epochs=1',
    '--config.few_shot.draws=4',
)


def test_every_protocol_and_the_quick_ones_twice(run, workdir: Path, tmp_path: Path) -> None:
    before = contents(workdir)
    first = printed_records(run(workdir, 'all', *QUICK))
    folder = workdir / 'evaluation'
    written = contents(folder)
    assert sorted(written) == sorted(f'{name}.json' for name in PROTOCOLS)
    assert {name: content for name, content in contents(workdir).items() if not name.startswith('evaluation')} == before
    by_protocol = [json.loads(written[f'{name}.json'])['records'] for name in PROTOCOLS]
    assert [record for found in by_protocol for record in found] == first
    assert all(by_protocol)
    for record in first:
        assert (record['step'], record['seed'], record['data_set']) == (4, 0, 'npz')
        assert record['examples'] == 64
    metrics = {(record['protocol'], record['encoder'], record['layer'], record['metric']) for record in first}
    assert ('structure', 'momentum', 'projection', 'effective_rank') in metrics
    assert ('knn', 'momentum', 'projection', 'top1') not in metrics
    again = ('knn', 'linear', 'few_shot', 'clustering')
    run(workdir, ','.join(again), *QUICK, f'--output={tmp_path / "again"}')
    assert contents(tmp_path / 'again') == {f'{name}.json': written[f'{name}.json'] for name in again}


def test_another_set_another_step_another_folder(run, workdir: Path, tmp_path: Path) -> None:
    """Larger images are resized; the results of the run's own set are kept."""
    rng = np.random.default_rng(0)
    other = tmp_path / 'other.npz'
    labels = np.arange(60) % 3
    images = {
        f'{split}_images': rng.integers(256, size=(60, 20, 20, 3)).astype(np.uint8) for split in ('train', 'test')
    }
    np.savez(other, **images, train_labels=labels, test_labels=labels)
    run(workdir, 'clustering')
    before = contents(workdir / 'evaluation')
    done = run(workdir, 'clustering', f'--config.data.path={other}', '--step=2', '--layers=backbone')
    found = printed_records(done)
    assert {record['step'] for record in found} == {2}
    assert {record['layer'] for record in found} == {'backbone'}
    assert {record['details']['clusters'] for record in found} == {3}
    folder = Path(json.loads(done.out.splitlines()[-1])['output'])
    assert re.fullmatch('on_npz_[0-9a-f]{8}', folder.name)
    assert folder.parent == workdir / 'evaluation'
    np.savez(other, **images, train_labels=labels, test_labels=labels[::-1])
    third = run(workdir, 'clustering', f'--config.data.path={other}', '--layers=backbone')
    assert json.loads(third.out.splitlines()[-1])['output'] not in (str(folder), str(workdir / 'evaluation'))
    assert json.loads((folder / 'clustering.json').read_text())['records'] == found
    assert (workdir / 'evaluation' / 'clustering.json').read_bytes() == before['clustering.json']
    run(workdir, 'clustering', f'--output={tmp_path / "elsewhere"}')
    assert contents(tmp_path / 'elsewhere') == before
    moved = shutil.copy(json.loads((workdir / 'config.json').read_text())['data']['path'], tmp_path / 'moved.npz')
    own = json.loads(run(workdir, 'clustering', f'--config.data.path={moved}').out.splitlines()[-1])
    assert own['output'] == str(workdir / 'evaluation')


def test_what_replaces_which_results(run, workdir: Path, tmp_path: Path) -> None:
    """Other test images have a folder of their own; other encoders and layers are added if all else is the same."""
    run(workdir, 'clustering')
    file = workdir / 'evaluation' / 'clustering.json'
    before = file.read_bytes()
    arrays = dict(np.load(json.loads((workdir / 'config.json').read_text())['data']['path']))
    arrays['test_images'] = arrays['test_images'][::-1]
    np.savez(tmp_path / 'other.npz', **arrays)
    done = run(workdir, 'clustering', f'--config.data.path={tmp_path / "other.npz"}')
    assert re.fullmatch('on_npz_[0-9a-f]{8}', Path(json.loads(done.out.splitlines()[-1])['output']).name)
    assert file.read_bytes() == before

    def places() -> list[tuple[str, str]]:
        records = json.loads(file.read_text())['records']
        return [(record['encoder'], record['layer']) for record in records if record['metric'] == 'nmi']

    momentum = ('--encoders=momentum', '--layers=projection')
    run(workdir, 'clustering', *momentum)
    assert places() == [('momentum', 'projection'), ('query', 'backbone'), ('query', 'projection')]
    run(workdir, 'clustering', *momentum, '--config.clustering.starts=3')
    assert places() == [('momentum', 'projection')]


def test_folders_of_other_data() -> None:
    """Digits distinguish all data but a set that is described by its name alone."""

    def splits(train: str, test: str | None) -> tuple:
        return SimpleNamespace(fingerprint=train), None if test is None else SimpleNamespace(fingerprint=test)

    def folder(name: str, train: str, test: str | None, *overrides: str, known: str | None = 'test') -> str:
        source = SimpleNamespace(data_fingerprint='train', test_fingerprint=known)
        return evaluation._folder_of(source, name, Splits(*splits(train, test)), overrides)

    moved = 'data.path=elsewhere'
    assert folder('npz', 'train', 'test', moved) == folder('npz', 'train', None, known='') == ''
    assert folder('npz', 'train', 'test', 'knn.k=1', known=None) == ''
    assert folder('cifar10', 'other', 'test', 'data.name=cifar10', 'data.data_dir=d', 'seed=1') == 'on_cifar10'
    with_digits = {
        folder('npz', 'train', 'other', moved),
        folder('npz', 'train', 'test', moved, known=None),
        folder('npz', 'other', 'test', moved),
        folder('cifar10', 'other', 'other', 'data.name=cifar10', 'data.limit=500'),
        folder('cifar10', 'another', 'other', 'data.name=cifar10', 'data.limit=600'),
    }
    assert len(with_digits) == 5
    assert all(re.fullmatch('on_(npz|cifar10)_[0-9a-f]{8}', name) for name in with_digits)


def test_the_report_of_the_run_gets_the_results(run, workdir: Path, tmp_path: Path, monkeypatch) -> None:
    page = workdir / 'report.html'
    page.write_text('old')
    done = run(workdir, 'clustering', f'--output={tmp_path / "elsewhere"}')
    assert (done.status, page.read_text()) == (0, 'old')
    moved = shutil.move(json.loads((workdir / 'config.json').read_text())['data']['path'], tmp_path / 'moved.npz')
    try:
        done = run(workdir, 'clustering', f'--config.data.path={moved}')
    finally:
        shutil.move(moved, json.loads((workdir / 'config.json').read_text())['data']['path'])
    assert f'{page} updated' in done.out, done
    assert 'clustering' in page.read_text()

    def absent(*_: object) -> None:
        raise UserError('the data are away')

    monkeypatch.setattr('dualcl_jax.reports.subject.read_subject', absent)
    done = run(workdir, 'clustering')
    assert done.status == 0
    assert 'note: report.html does not show these results yet (the data are away); to update it' in done.out


@pytest.mark.parametrize('format', ['safetensors', 'stablehlo'])
def test_an_exported_encoder_is_the_runs(run, workdir: Path, tmp_path: Path, format: str) -> None:
    opened = open_saved_run(str(workdir))
    file = tmp_path / 'exported' / f'encoder.{format}'
    file.parent.mkdir()
    file.write_bytes(FORMATS[format](*describe(opened, encoder='momentum', projection=True)))
    own = printed_records(run(workdir, 'knn,structure', '--encoders=momentum', '--layers=projection'))
    path = f'--config.data.path={opened.config.data.path}'
    done = run('', 'knn,structure', path, f'--exported={file}')
    found = printed_records(done)
    assert json.loads(done.out.splitlines()[-1])['output'] == f'{file}.evaluation'
    wanted = [record for record in own if (record['encoder'], record['layer']) == ('momentum', 'projection')]
    assert len(wanted) == len(found) == 12 + 7
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours['value'] == pytest.approx(theirs['value'], rel=1e-3)
        assert ours | {'value': 0, 'interval': 0, 'details': 0} == theirs | {'value': 0, 'interval': 0, 'details': 0}
    refused(run('', 'semi', path, f'--exported={file}', '--config.semi.epochs=1,1'), 'needs a run')
    refused(run('', 'knn', path, f'--exported={file}', '--encoders=query'), '--encoders=query', 'choose from momentum')
    refused(run('', 'knn', path, f'--exported={file}', '--step=best'), '--step=best', 'leave the flag out')
    file.write_bytes(file.read_bytes()[:-40])
    refused(run('', 'knn', path, f'--exported={file}'), 'not a complete export')


def test_another_set_is_taken_whole() -> None:
    config = default.get_config()
    config.data.limit, config.data.validation_fraction = 100, 0.2
    source = SimpleNamespace(config=config)
    own, other = (evaluation.resolve(source, fields).data for fields in ([], ['data.name=cifar100']))
    assert (own.limit, own.validation_fraction) == (100, 0.2)
    assert (other.limit, other.validation_fraction) == (0, 0.0)


def test_structure_needs_no_labels(run, workdir: Path, tmp_path: Path) -> None:
    """Without labels and test images, everything that can be measured is measured on the training images."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / 'plain.npz', images=rng.integers(256, size=(64, 16, 16, 3)).astype(np.uint8))
    plain = f'--config.data.path={tmp_path / "plain.npz"}'
    found = printed_records(run(workdir, 'structure', plain, '--config.structure.images=20'))
    metrics = {record['metric'] for record in found}
    assert metrics == {'alignment', 'uniformity', 'effective_rank', 'std_per_dimension'}
    assert {(record['split'], record['examples']) for record in found} == {('train', 20)}
    refused(run(workdir, 'all', plain), 'no test split', '--protocols=structure')
    refused(run(workdir, 'structure', plain, '--config.data.limit=1'), 'one train image has no structure')


def refused(done: Finished, *said: str) -> None:
    """Asserts exit status 2 and an error of at most three lines that contains these words."""
    assert done.status == 2, done
    assert 'Traceback' not in done.err
    assert 1 <= len(done.err.splitlines()) <= 3
    for words in said:
        assert words in done.err, done


FLAGS = {
    # flag: words that the error must contain
    '--protocols=knm': ['there is no knm; did you mean knn?', 'or all'],
    '--protocols=': ['--protocols is empty'],
    '--encoders=key': ['--encoders=key', 'query, momentum'],
    '--layers=head': ['--layers=head', 'backbone, projection'],
    '--step=3': ['--step=3', 'checkpoints of 2, 4'],
    '--step=best': ['--step=best', 'no kNN accuracy'],
    '--config.knn.kk=3': ['--config.knn.kk: no such field', 'knn.k'],
    '--config.knn.k=0': ['config.knn.k', 'whole numbers from 1'],
    '--config.knn.k=1.5': ['config.knn.k', 'whole numbers from 1'],
    '--config.linear.validation=1': ['linear.validation', 'below 1'],
    '--config.finetune.optimizer=adam': ['finetune.optimizer', 'sgd, lars, adamw'],
    '--config.semi.epochs=3': ['semi.epochs', 'one number for each'],
    '--config.data.image_size=64': ['data.image_size', 'belongs to the encoder'],
    '--config.data.limit=-1': ['data.limit', 'at least 0'],
    '--config.data.name=cifarten': ['cifarten'],
    '--config.model.width=3': ['--config.model.width: no such field'],
    '--config.seed=x': ['--config.seed=x: must be an integer'],
    '--config.seed': ['--config.seed', 'needs a value'],
    '--protocol=knn': ['--protocol=knn: no such flag'],
    '--workdir=/no/such/run': ['--workdir=/no/such/run: no run with a checkpoint'],
    '--workdir=': ['--workdir=: no run'],
    '--exported=x': ['give either --workdir or --exported'],
    '--output=README.md/x': ['--output=README.md/x: cannot be written'],
}


@pytest.mark.parametrize('flag', FLAGS)
def test_flags_that_are_refused(run, finished: Path, flag: str) -> None:
    before = contents(finished)
    refused(run(finished, 'knn', flag), *FLAGS[flag])
    assert contents(finished) == before


def npz(path: Path, **changes: np.ndarray) -> str:
    """A flag for the data of the run with other arrays."""
    with np.load(write_npz(path)) as arrays:
        kept = {name: value for name, value in (dict(arrays) | changes).items() if value is not None}
    np.savez(path, **kept)
    return f'--config.data.path={path}'


DATA = {
    'no labels': ({'train_labels': None, 'test_labels': None}, ['no training image has a label', 'structure']),
    'no test labels': ({'test_labels': None}, ['no test image has a label']),
    'one class': ({'train_labels': np.zeros(256, int), 'test_labels': np.zeros(64, int)}, ['have the same class']),
    'other classes': ({'train_labels': 4 + np.arange(256) % 2}, ['no test image belongs to a class of the training']),
    'gray': (
        {f'{split}_images': np.zeros((n, 8, 8, 1), np.uint8) for split, n in (('train', 256), ('test', 64))},
        ['1 channels', 'takes 3'],
    ),
}


@pytest.mark.parametrize('name', DATA)
def test_data_that_are_refused(run, workdir: Path, tmp_path: Path, name: str) -> None:
    changes, said = DATA[name]
    refused(run(workdir, 'few_shot', npz(tmp_path / 'other.npz', **changes)), *said)
    assert not list((workdir / 'evaluation').glob('on_npz*/few_shot.json'))


def test_one_class_has_no_clusters(run, workdir: Path, tmp_path: Path) -> None:
    done = run(workdir, 'clustering,structure', npz(tmp_path / 'other.npz', test_labels=np.zeros(64, int)))
    assert 'note: left out: clustering: all labelled test examples have the same class' in done.out
    assert 'note: left out: purity and class distances: all labelled examples have the same class' in done.out
    found = printed_records(done)
    assert {record['protocol'] for record in found} == {'structure'}
    assert 'purity' not in {record['metric'] for record in found}


def test_a_long_tail_is_evaluated_for_what_can_be(run, workdir: Path, tmp_path: Path) -> None:
    """Classes of one image, classes of test images alone and a bank smaller than k are named, also in the records."""
    rng = np.random.default_rng(0)
    train = np.array([0] * 12 + [1] * 12 + list(range(2, 8)))  # two classes of 12, six of one
    test = np.array([0, 1] * 10 + [2, 8, 9])  # two of classes that are not among the training images
    arrays = {
        f'{split}_images': rng.integers(256, size=(len(labels), 16, 16, 3)).astype(np.uint8)
        for split, labels in (('train', train), ('test', test))
    }
    data = npz(tmp_path / 'tail.npz', train_labels=train, test_labels=test, **arrays)
    done = run(workdir, 'all', data, '--config.knn.k=5,20,100,200', '--config.knn.temperature=0.1', *QUICK)
    found = printed_records(done)
    reason = 'test images of classes without training images'
    for words in (
        f'left out: 2 {reason}, 2 classes: 8, 9',
        'k 100, 200 becomes 30, the number of labelled training images',
        'few_shot with 10 images a class: without 6 classes that have fewer',
        'left out: purity of 3 examples that are alone in their class',
        'finetune, semi: finetune.layer_decay has no effect: this network has no blocks that are known by name',
    ):
        assert words in ' '.join(done.out.split()), done.out
    assert {record['protocol'] for record in found} == set(PROTOCOLS)
    for record in found:
        if record['protocol'] not in ('structure', 'clustering'):
            assert record['details']['left_out'] == {reason: {'count': 2, 'classes': 2, 'names': ['8', '9']}}
            assert record['examples'] == (20 if record['details'].get('shots', 1) > 1 else 21)
    (purity,) = {(r['examples'], r['details']['alone_in_class']) for r in found if r['metric'] == 'purity'}
    assert purity == (20, 3)
    clamped = [record for record in found if record['protocol'] == 'knn' and 'asked_k' in record['details']]
    assert {(record['k'], tuple(record['details']['asked_k'])) for record in clamped} == {(30, (100, 200))}
    shots = {
        (
            record['details']['shots'],
            record['details'].get('classes'),
            record['details'].get('classes_with_fewer_images'),
        )
        for record in found
        if record['protocol'] == 'few_shot'
    }
    assert shots == {(1, None, None), (5, 2, 6), (10, 2, 6)}


def test_shots_that_too_few_classes_have_are_left_out(run, workdir: Path, tmp_path: Path) -> None:
    changes = {'train_images': np.zeros((4, 16, 16, 3), np.uint8), 'train_labels': np.arange(4)}
    done = run(workdir, 'few_shot', npz(tmp_path / 'few.npz', **changes), *QUICK)
    assert {record['details']['shots'] for record in printed_records(done)} == {1}
    assert 'left out: few_shot with 10 images a class' in ' '.join(done.out.split())


def test_changed_data_and_a_truncated_checkpoint(run, workdir: Path, tmp_path: Path) -> None:
    config = json.loads((workdir / 'config.json').read_text())
    config['data']['path'] = str(write_npz(tmp_path / 'changed.npz', seed=1))
    (workdir / 'config.json').write_text(json.dumps(config))
    refused(run(workdir, 'knn'), 'not the data that', '--config.data.name=npz')
    assert len(printed_records(run(workdir, 'clustering', '--config.data.name=npz'))) == 4
    for path in (workdir / 'checkpoints' / '00000004' / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(run(workdir, 'knn'), '00000004: cannot be read as a checkpoint')


def test_a_folder_that_cannot_be_written(run, workdir: Path) -> None:
    (workdir / 'evaluation').write_text('in the way')
    refused(run(workdir, 'knn'), 'evaluation', 'cannot be written')
    (workdir / 'evaluation').unlink()
    (workdir / 'evaluation' / 'knn.json').mkdir(parents=True)
    refused(run(workdir, 'knn'), 'knn.json: cannot be written', '--output')


def test_diverged_features(run, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(self, encoder, images, rows, advance):
        return {'backbone': np.full((len(rows), 2), np.nan)}

    monkeypatch.setattr(EncoderSource, 'embed', embed)
    refused(run(workdir, 'knn', '--layers=backbone'), 'not finite: it has diverged', 'earlier --step')
