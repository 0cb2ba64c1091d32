"""The folders of small sets, and the record of a first run on one."""

import json
from pathlib import Path

import numpy as np
import pytest

from dualcl_jax.system.errors import UserError
from experiments.benchmark import first_run, small_sets
from tests.support.image_folders import named, write_images


def test_each_class_gives_equally_many() -> None:
    labels = np.repeat(np.arange(12), 7)
    chosen = small_sets.choose(labels, 5)
    assert len(set(chosen.tolist())) == 50
    assert np.bincount(labels[chosen]).tolist() == [5] * 10
    later = small_sets.choose(labels, 5, first=2)
    assert np.bincount(labels[later]).tolist() == [0, 0] + [5] * 10
    with pytest.raises(UserError, match='7 images, fewer than 8'):
        small_sets.choose(labels, 8)


def test_a_folder_of_photo_patches(tmp_path: Path, in_process) -> None:
    pytest.importorskip('skimage')
    flags = ('--set=photo_patches', '--train=20', '--test=10', f'--output={tmp_path}')
    assert in_process(small_sets.main, *flags).status == 0
    assert len(list(tmp_path.glob('train/*'))) == 10
    assert len(list(tmp_path.glob('train/*/*.png'))) == 20
    assert len(list(tmp_path.glob('test/*/*.png'))) == 10


@pytest.mark.slow
def test_records(tmp_path: Path, in_process) -> None:
    write_images(tmp_path / 'photos', named(('train/cat', 'train/dog', 'test/cat', 'test/dog'), 8))
    fields = ('model.name=tiny', 'train.epochs=2', 'log.pictures=False')
    flags = (f'--data={tmp_path}/photos', f'--workdirs={tmp_path}/runs', f'--output={tmp_path}/records.json')
    for _ in range(2):  # the second measures nothing again
        assert in_process(first_run.main, *flags, *(f'--config.{field}' for field in fields)).status == 0
    (record,) = json.loads((tmp_path / 'records.json').read_text())
    assert record['data'] == record['config']['data']['path'] == 'photos'
    assert record['cpu_seconds'] > 0
    assert list(record['curve']) == ['0', '1', '2']
    assert str(tmp_path) not in (tmp_path / 'records.json').read_text()
