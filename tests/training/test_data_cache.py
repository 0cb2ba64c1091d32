"""Runs that start again on machines without a cache neither examine the images nor read the labels again."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from etils import epath

from dualcl_jax import data
from dualcl_jax.data.images import index, tfds_records
from dualcl_jax.workdir.folder import read_fingerprints, stored_config
from tests.support.image_folders import named, write_images
from tests.support.runs import Trainer, summary
from tests.support.tfds_sets import LABEL, examples, image_feature, write_set

FIELDS = ('model.name=tiny', 'train.batch_size=8', 'checkpoint.every_steps=2', 'data.memory_bytes=0')
REFUSING = """
from dualcl_jax.data.images import index, tfds_records
from tests.support.quick_config import get_config


def refuse(*args):
    raise AssertionError('the data are read again')


index.examine_file = tfds_records._read_labels = refuse
"""
"""A config whose runs cannot examine an image, or read the records of a set for their labels."""


def image_folder(tmp_path: Path) -> Sequence[str]:
    write_images(tmp_path / 'images', named(['ant', 'bee'], 12))
    return ('data.name=folder', f'data.path={tmp_path / "images"}')


def record_set(tmp_path: Path) -> Sequence[str]:
    features = {'image': image_feature(-1, -1, 3), 'label': LABEL}
    write_set(tmp_path / 'sets', {'train': examples(24, 20, 16, 3), 'test': examples(4, 20, 16, 3)}, features)
    return ('data.name=tiny', f'data.data_dir={tmp_path / "sets"}')


@pytest.mark.parametrize(('write', 'processes'), [(image_folder, 2), (record_set, 1)])
def test_a_run_restarts_on_a_machine_without_a_cache(
    trainer: Trainer, tmp_path: Path, monkeypatch, write: Callable[[Path], Sequence[str]], processes: int
) -> None:
    fields, workdir = (*FIELDS, *write(tmp_path)), tmp_path / 'run'
    config = tmp_path / 'refusing.py'
    config.write_text(REFUSING)

    def new_machine(name: str) -> None:
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / name))

    new_machine('first')
    assert 'read again' in trainer.run(tmp_path / 'new', *fields, 'train.steps=2', config=str(config), status=1).err
    trainer.run(workdir, *fields, 'train.steps=2')
    new_machine('second')
    more = (*fields, 'train.steps=4', '--extend')
    if processes == 1:
        trainer.run(workdir, *more, config=str(config))
    else:
        trainer.run_processes(workdir, *more, config=str(config), processes=processes, devices=1)
    assert summary(workdir)['resumed_from_step'] == 2

    new_machine('third')
    monkeypatch.setattr(index, 'examine_file', None)
    monkeypatch.setattr(tfds_records, '_read_labels', None)
    found = data.load(data.data_config(stored_config(epath.Path(workdir)), epath.Path(workdir)))  # as to evaluate it
    assert found.train.fingerprint == read_fingerprints(epath.Path(workdir))[0]
