"""Data given to `dualcl_jax.train` in memory: what is stored in the workdir, and that runs are those of files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

import dualcl_jax
from configs import default
from dualcl_jax.api import inputs
from dualcl_jax.data import Splits, data_config, load
from dualcl_jax.data.text import files
from dualcl_jax.system.config import override
from dualcl_jax.system.errors import UserError
from tests.support import text_runs
from tests.support.runs import REPOSITORY

IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


def stored(found: inputs.Input, workdir: Path) -> str:
    """The path of the data, written for a run that uses them."""
    path = found.fields['data.path']
    with inputs.stored(found, str(workdir)):
        fields = {'data': {'path': path}}
        (workdir / 'config.json').write_text(json.dumps(fields))
    return path


def load_splits(config: ConfigDict, fields: Mapping[str, Any]) -> Splits:
    """The splits of the data, as a run loads them."""
    override(config, [f'{field}={value}' for field, value in fields.items()])
    return load(data_config(config))


def test_pairs_train_as_their_file_does(in_process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And whatever JAX's default generator of random numbers is."""
    monkeypatch.setattr('dualcl_jax.api.session.start', lambda *_, **__: None)
    own = dict(field.split('=') for field in text_runs.FIELDS) | {'train.steps': 3, 'monitor.every_epochs': 0}
    own |= {'model.name': 'transformer', 'model.layers': 1, 'model.heads': 2, 'model.mlp_width': 32}
    config = f'{REPOSITORY}/{text_runs.CONFIG}'
    pairs = text_runs.pairs(64)
    summary = dualcl_jax.train(pairs, workdir=tmp_path / 'memory', config=config, **own)
    file = text_runs.write_pairs(tmp_path / 'pairs.tsv', 64)
    with jax.default_prng_impl('rbg'):
        of_file = dualcl_jax.train(file, workdir=tmp_path / 'file', config=config, **own)
    assert of_file['state_sha256'] == summary['state_sha256']
    assert summary['config']['data']['columns'] == 'first,second'
    sentences = [first for first, _ in pairs] * 2
    found = dualcl_jax.embed(tmp_path / 'memory', data=sentences)
    assert found.files == sentences
    encoder = dualcl_jax.load_encoder(tmp_path / 'memory')
    np.testing.assert_allclose(found.features, encoder(sentences), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match='data: 1 of the 129 sentences cannot be used; leave them out'):
        dualcl_jax.embed(tmp_path / 'memory', data=[*sentences, ' '])


def test_sentences_are_stored(tmp_path: Path) -> None:
    sentences = ['one\tsentence', 'another,\nof "two" lines', 'ä']
    found = inputs.describe(sentences, str(tmp_path), of_text=True)
    assert inputs.describe(np.array(sentences), str(tmp_path), of_text=True).fields == found.fields
    assert (found.fields['data.name'], found.fields['data.columns']) == ('text', 'text')
    lines = Path(stored(found, tmp_path)).read_text().splitlines()
    assert [json.loads(line)['text'] for line in lines] == sentences


def test_a_sentence_with_an_unpaired_surrogate_is_left_out(tmp_path: Path) -> None:
    found = inputs.describe(['whole \U0001f600 emoji', 'broken \ud83d emoji'], str(tmp_path), of_text=True)
    path, left_out = epath.Path(stored(found, tmp_path)), files.LeftOut()
    rows = list(files.read_rows(path, files.Columns(('text',), ''), left_out))
    assert rows == [(('whole \U0001f600 emoji',), None)]
    assert left_out.reasons == {'rows: not UTF-8': {'count': 1, 'names': [f'{path.name}:2']}}


def test_paths(tmp_path: Path) -> None:
    (tmp_path / 'set.npz').mkdir()
    cases = (
        ('a.npz', 'w', 'npz'),
        ('a.NPZ', 'w', 'npz'),
        (tmp_path, 'gs://b/w', 'folder'),
        (tmp_path / 'set.npz', 'w', 'folder'),
        ('a.tsv', 'w', 'text'),
    )
    for data, workdir, name in cases:
        found = inputs.describe(data, workdir, of_text=name == 'text')
        assert found == inputs.Input({'data.name': name, 'data.path': str(data)})


@pytest.mark.parametrize('name', ['train_images', 'images', 'X_train'])
def test_channels_under_any_name(name: str, tmp_path: Path) -> None:
    found = inputs.describe({name: np.zeros((2, 8, 8, 5), np.uint16)}, str(tmp_path), of_text=False)
    assert found.channels == 5
    assert list(np.load(stored(found, tmp_path))) == [name]


def test_arrays_of_jax(tmp_path: Path) -> None:
    found = inputs.describe(jnp.zeros((2, 8, 8, 3), jnp.uint8), str(tmp_path), of_text=False)
    assert (found.fields['data.name'], found.channels) == ('npz', 0)
    assert np.load(stored(found, tmp_path))['train_images'].shape == (2, 8, 8, 3)


def test_the_name_follows_the_content(tmp_path: Path) -> None:
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    transposed = images.transpose(0, 2, 1, 3)
    same = np.ascontiguousarray(transposed)
    names = [
        inputs.describe({name: array}, str(tmp_path), of_text=False).fields['data.path']
        for name, array in (('images', transposed), ('images', same), ('images', images), ('x_train', images))
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_other_arrays_and_no_labels(tmp_path: Path) -> None:
    named = {'images': IMAGES, 'labels': None, 'class_names': np.array(['a', 'b'])}
    for data, expected in ((named, ['images', 'class_names']), ((IMAGES, None), ['train_images'])):
        assert list(np.load(stored(inputs.describe(data, str(tmp_path), of_text=False), tmp_path))) == expected


@pytest.mark.parametrize('names', [('x_train', 'y_train'), ('images', 'labels')])
def test_test_images_are_held_out(names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A share of the labelled ones, chosen by their content: a set that grows keeps them."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (400, 8, 8, 3), np.uint8), np.arange(400, dtype=np.uint8) % 4
    more = {'class_names': np.array(list('abcd'))}
    of_run = {'of_text': False, 'held_out': inputs.HeldOut(0.1, 'auto')}
    found = inputs.describe(dict(zip(names, (images, labels), strict=True)) | more, str(tmp_path), **of_run)
    arrays = np.load(stored(found, tmp_path))
    assert arrays.files == [*names, 'class_names', 'test_images', 'test_labels']
    count = len(arrays['test_images'])
    assert 20 < count < 60
    assert capsys.readouterr().out == (
        f'{count} of the 400 images are held out for testing, chosen by their content (data.test_fraction=0.1)\n'
    )
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for held_out, end in ((False, names), (True, ('test_images', 'test_labels'))):
        assert len(arrays[end[0]]) == (count if held_out else 400 - count)
        assert [known[image.tobytes()] for image in arrays[end[0]]] == arrays[end[1]].tolist()
    splits = load_splits(default.get_config(), found.fields)
    assert (len(splits.train), len(splits.test)) == (400 - count, count)

    again = inputs.describe((images, labels.reshape(-1, 1)), str(tmp_path / 'other'), **of_run)
    half = inputs.describe((images[::2], labels[::2]), str(tmp_path / 'half'), **of_run)
    tested = [
        {image.tobytes() for image in np.load(stored(each, tmp_path / folder))['test_images']}
        for each, folder in ((again, 'other'), (half, 'half'))
    ]
    assert tested[0] == {image.tobytes() for image in arrays['test_images']}
    assert tested[1] == tested[0] & {image.tobytes() for image in images[::2]}


@pytest.mark.parametrize('other', [{'labels': np.zeros(400, int)}, {'y_test': np.zeros(9, int)}])
def test_nothing_is_held_out(other: dict[str, np.ndarray], tmp_path: Path) -> None:
    """One class, which makes every prediction right, or labels of test images that are missing."""
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), np.uint8)
    arrays = {'images': images, 'labels': np.arange(400) % 4} | other
    found = inputs.describe(arrays, str(tmp_path), of_text=False, held_out=inputs.HeldOut(0.1, 'auto'))
    assert not found.note
    assert np.load(stored(found, tmp_path)).files == list(arrays)


def test_arrays_that_a_run_has_are_not_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Version 0.1.0 held nothing out."""
    images, labels = np.arange(40 * 8 * 8, dtype=np.uint16).reshape(40, 8, 8).astype(np.uint8), np.arange(40) % 2
    before = inputs.describe((images, labels), str(tmp_path), of_text=False)
    path = stored(before, tmp_path)
    held_out = inputs.HeldOut(0.5, 'auto')
    assert (
        inputs.describe((images, labels), str(tmp_path), of_text=False, held_out=held_out).fields['data.path'] == path
    )
    with_test = {'train_images': images, 'train_labels': labels, 'test_images': images[:2]}
    for data in (images, (images, None), (images, np.full(40, -1)), (images, labels[:3]), with_test):
        found = inputs.describe(data, str(tmp_path / 'new'), of_text=False, held_out=held_out)
        assert found.fields == inputs.describe(data, str(tmp_path / 'new'), of_text=False).fields
        assert not found.note
    assert capsys.readouterr().out == ''
    with pytest.raises(UserError, match=r'data\.test_fraction=1: no image is left for training; lower it'):
        inputs.describe((images[:2], labels[:2]), str(tmp_path), of_text=False, held_out=inputs.HeldOut(1.0, 'random'))


@pytest.mark.parametrize('fails', ['the_run', 'the_disk'])
def test_unused_data_are_removed(fails: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(file, **_) -> None:
        file.write(b'some')
        raise OSError(28, 'No space left on device')

    if fails == 'the_disk':
        monkeypatch.setattr(np, 'savez', full)
    found = inputs.describe(np.zeros((2, 8, 8, 3), np.uint8), str(tmp_path), of_text=False)

    def run() -> None:
        with inputs.stored(found, str(tmp_path)):
            assert np.load(found.fields['data.path'])['train_images'].shape == (2, 8, 8, 3)
            raise UserError('a mistake')

    with pytest.raises(UserError, match='a mistake' if fails == 'the_run' else 'No space left'):
        run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('data', 'of_text', 'message'),
    [
        (['a', ('b', 'c')], True, 'a list of strings, or a list of pairs'),
        ([('a', 'b', 'c')], True, 'a list of strings, or a list of pairs'),
        (np.zeros((2, 8, 8, 3)), True, 'sentences are needed'),
        ([np.zeros((8, 8, 3)), np.zeros((9, 9, 3))], False, 'the items of train_images have different shapes'),
        (['a sentence'], False, "data: list; give a path.*config='simcse'"),
        ((np.zeros(1),) * 3, False, 'a tuple of 3'),
        (b'folder', False, 'data: bytes; give a path'),
        (np.zeros((6, 3, 32, 32), np.uint8), False, r'data: train_images is uint8 .*x\.transpose\(0, 2, 3, 1\)'),
        ({'X_test': np.zeros((6, 1, 9, 9))}, False, r'data: X_test is float64 .*x\.transpose\(0, 2, 3, 1\)'),
        ((IMAGES, ['cat', 'dog']), False, r'data: train_labels are <U3; labels must be integers: np\.unique'),
        ({'images': IMAGES, 'labels': np.zeros(2)}, False, 'data: labels are float64; labels must be integers'),
        ({'images': IMAGES, 'more': {}}, False, 'data: more holds Python objects, which are not stored; leave it out'),
    ],
)
def test_other_data_is_refused(data, of_text: bool, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        inputs.describe(data, str(tmp_path), of_text=of_text)
    assert not list(tmp_path.iterdir())
