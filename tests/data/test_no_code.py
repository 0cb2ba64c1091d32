"""Data, checkpoints and exports never execute code: each case plants a module, and no program imports it."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualcl_jax import data, evaluate, load_encoder, main, prepare
from dualcl_jax.data.images import tfds as tfds_source
from dualcl_jax.data.tfds_folder import check_features, check_versions
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.runs import QUICK, REPOSITORY
from tests.support.tfds_sets import COLOUR, LABEL, config, examples, image_feature, write_set

GOLDEN = REPOSITORY / 'tests/data/golden'
CLASS = 'planted_here.evil.Evil'
PLANTED = {'pythonClassName': CLASS, 'text': {}}
SEQUENCE = 'tensorflow_datasets.core.features.sequence_feature.Sequence'
DATASET = 'tensorflow_datasets.core.features.dataset_feature.Dataset'


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with a module that leaves a file beside itself when it is imported; it is the current folder."""
    package = tmp_path / 'planted_here'
    package.mkdir()
    (package / 'evil.py').write_text('import pathlib\npathlib.Path(__file__).with_name("executed").touch()\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    assert not (package / 'executed').exists()


def a_set(root: Path, feature: dict) -> Path:
    """A set with one more feature."""
    return write_set(root, {'train': examples(9, 8, 8, 3)}, COLOUR | {'other': feature})


FEATURES = {
    'plain': PLANTED,
    'other spelling': {'python_class_name': CLASS, 'text': {}},
    'nested': {'pythonClassName': SEQUENCE, 'sequence': {'feature': PLANTED, 'length': '-1'}},
    'in a data set': {'pythonClassName': DATASET, 'dataset': {'feature': PLANTED}},
    'before TFDS 4': {'type': CLASS, 'content': {}},
    'JSON in JSON': {
        'pythonClassName': SEQUENCE,
        'jsonFeature': {'json': json.dumps({'feature': {'type': CLASS, 'content': {}}, 'length': None})},
    },
}


@pytest.mark.parametrize('kind', FEATURES)
@pytest.mark.parametrize('square', [True, False])
def test_features_of_a_set(planted, kind, square):
    """A set of one size, and one whose records are decoded by workers."""
    image = image_feature(8, 8, 3) if square else image_feature(-1, -1, 3)
    features = {'image': image, 'label': LABEL, 'other': FEATURES[kind]}
    write_set(Path('sets'), {'train': examples(9, 8, 8, 3)}, features)
    with pytest.raises(UserError, match=rf"uses the feature class '{CLASS}', which is not part of TFDS") as error:
        data.load(config(data_dir='sets'))
    assert len(str(error.value).splitlines()) == 1


def test_features_in_dataset_info(planted):
    a_set(Path('sets'), LABEL)
    path = Path('sets/tiny/1.0.0/dataset_info.json')
    path.write_text(json.dumps(json.loads(path.read_text()) | {'features': PLANTED}))
    with pytest.raises(UserError, match='which is not part of TFDS'):
        data.load(config(data_dir='sets'))


def test_a_module_that_only_looks_like_one_of_tfds(planted):
    with pytest.raises(UserError, match='which is not part of TFDS'):
        data.load(config(data_dir=a_set(planted, PLANTED | {'pythonClassName': f'tensorflow_datasets.core.{CLASS}'})))


def test_features_of_tfds_are_allowed(planted):
    text = {'pythonClassName': 'tensorflow_datasets.core.features.text_feature.Text', 'text': {}}
    tensor = {
        'pythonClassName': 'tensorflow_datasets.core.features.feature.Tensor',  # its name in earlier versions
        'tensor': {'shape': {'dimensions': ['2']}, 'dtype': 'int64', 'encoding': 'none'},
    }
    folder = a_set(planted, {'pythonClassName': SEQUENCE, 'sequence': {'feature': text, 'length': '-1'}})
    check_features(folder / 'tiny/1.0.0')
    (folder / 'tiny/1.0.0/features.json').write_text(json.dumps(tensor))
    check_features(folder / 'tiny/1.0.0')


def test_preparing_beside_a_planted_set(planted, monkeypatch, in_process):
    sets = a_set(planted.parent / 'sets', PLANTED)
    for name in ('tiny', 'Tiny', 'tiny:1.0.0', 'tiny/none'):
        with pytest.raises(UserError, match='which is not part of TFDS'):
            check_versions(name, str(sets))
    with pytest.raises(UserError, match="the namespace 'others'"):
        check_versions('others:tiny', str(sets))
    monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: True)
    done = in_process(prepare.main, '--dataset=tiny', f'--data_dir={sets}')
    assert done.status == 2
    assert 'which is not part of TFDS' in done.err


def check_training(status: int, error: str) -> None:
    assert status == 2, error
    assert 'which is not part of TFDS' in error
    assert len(error.splitlines()) == 1


def training_flags(planted: Path) -> list[str]:
    sets = a_set(planted.parent / 'sets', PLANTED)
    fields = ('data.name=tiny', f'data.data_dir={sets}', 'data.image_size=8', 'train.batch_size=4')
    flags = [f'--config={REPOSITORY / QUICK}', f'--workdir={planted.parent / "run"}']
    return [*flags, *(f'--config.{field}' for field in fields)]


def test_training(planted, trainer):
    """As a command in the folder of the module, which is first in the path of its imports."""
    command = [sys.executable, '-m', 'dualcl_jax.main', *training_flags(planted)]
    environment = trainer.environment() | {'PYTHONPATH': str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    check_training(done.returncode, done.stderr)


@pytest.mark.parametrize('flag', ['--dry_run', '--show_views=views.png'])
def test_plans_and_views(planted, in_process, flag):
    done = in_process(main.main, *training_flags(planted), flag)
    check_training(done.status, done.err)


class Reduced:
    """Unpickling one imports the planted module."""

    def __reduce__(self):
        return __import__, ('planted_here.evil',)


@pytest.mark.parametrize('name', ['train_images', 'train_labels'])
def test_pickled_arrays(planted, name):
    arrays = {'train_images': np.zeros((4, 8, 8, 3), np.uint8), 'train_labels': np.zeros(4, int)}
    np.savez('data.npz', **(arrays | {name: np.array([Reduced()] * 4, object)}))
    with pytest.raises(UserError, match=r'Python objects|never unpickled|is object'):
        data.load(config('npz', path='data.npz', memory_bytes=2**20))
    Path('data.npz').write_bytes(pickle.dumps(Reduced()))
    with pytest.raises(UserError, match='cannot be read'):
        data.load(config('npz', path='data.npz', memory_bytes=2**20))


def test_an_image_that_starts_a_program(planted, monkeypatch):
    """Pillow passes PostScript to Ghostscript, if it may read it."""
    calls = planted / 'gs'
    calls.write_text(f'#!/bin/sh\ntouch {planted}/executed\n')
    calls.chmod(0o755)
    monkeypatch.setenv('PATH', str(planted), prepend=os.pathsep)
    monkeypatch.setattr('PIL.EpsImagePlugin.gs_binary', str(calls))
    monkeypatch.setattr(
        'PIL.Image.Image.save',
        lambda self, file, format, save=Image.Image.save: save(self, file, 'EPS'),
    )
    write_set(Path('sets'), {'train': examples(3, 8, 8, 3)}, COLOUR)
    monkeypatch.undo()
    monkeypatch.setattr('PIL.EpsImagePlugin.gs_binary', str(calls))
    monkeypatch.chdir(planted.parent)
    with pytest.raises(UserError, match='cannot identify image file'):
        tfds_source.load(config(data_dir='sets'))


@pytest.fixture
def run(planted) -> Path:
    """A stored run, in the current folder."""
    with tarfile.open(GOLDEN / 'run.tar.gz') as archive:
        archive.extractall(planted.parent, filter='data')
    return Path('run')


def test_evaluation_of_a_planted_set(in_process, planted, run):
    a_set(Path('sets'), PLANTED)
    data_dir = f'--config.data.data_dir={Path("sets").resolve()}'
    done = in_process(
        evaluate.main, f'--workdir={run.resolve()}', '--config.data.name=tiny', data_dir, '--protocols=knn'
    )
    assert done.status == 2
    assert 'which is not part of TFDS' in done.err


def test_classes_named_by_a_checkpoint(planted, run):
    """Orbax stores the module and class of named tuples."""
    for path in run.rglob('_METADATA'):
        text = path.read_text().replace('optax', 'planted_here.evil')
        tree = json.loads(text)
        tree['custom_metadata'] = {'category': 'namedtuple', 'module': 'planted_here.evil', 'clazz': 'Evil'}
        rich = {'category': 'namedtuple', 'module': 'planted_here.evil', 'clazz': 'Evil', 'entries': []}
        path.write_text(json.dumps(tree | {'value_metadata_tree': json.dumps({'params': rich})}))
    for path in run.rglob('*'):
        if path.is_file() and path.suffix in ('', '.json') and b'orbax' in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(b'orbax.checkpoint', b'planted_here.evil'))
    with contextlib.suppress(UserError):
        open_saved_run(str(run))


def test_names_in_a_config(planted, run):
    """Every text of the config names the module."""
    stored = json.loads((run / 'config.json').read_text())
    for section in stored.values():
        for field in section if isinstance(section, dict) else ():
            if isinstance(section[field], str):
                section[field] = CLASS
    (run / 'config.json').write_text(json.dumps(stored))
    with pytest.raises(UserError):
        open_saved_run(str(run))


@pytest.mark.parametrize('file', ['encoder.safetensors', 'encoder.stablehlo'])
def test_names_in_an_export(planted, file):
    """The description of an export names the module; StableHLO is not called."""
    content = (GOLDEN / file).read_bytes()
    name = rb'\"tiny\"'
    assert content.count(name)
    Path(file).write_bytes(content.replace(name, rb'\"evil\"'))
    with pytest.raises(UserError):
        load_encoder(file)
