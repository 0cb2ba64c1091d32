"""Runs on gs://: data and workdir in an emulated bucket, with the real gcsfs, tensorstore and array_record."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.object_store import object_store, stored, upload
from tests.support.runs import Trainer, kill, killed_at_last, summary, wait_until
from tests.support.tfds_sets import LABEL, image_feature, write_set

MISSING = [name for name in ('gcsfs', 'gcp_storage_emulator') if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: pip install gcp-storage-emulator '.[gcs]'"),
]

FIELDS = ('data.name=tiny', 'data.data_dir=gs://bucket/tfds', 'train.steps=16', 'checkpoint.every_steps=4')


@pytest.fixture(scope='module')
def bucket(tmp_path_factory) -> Iterator[Path]:
    """The objects of gs://bucket as files; it holds a set of images of several sizes."""
    folder = tmp_path_factory.mktemp('store')
    rng = np.random.default_rng(0)

    def some(count: int) -> list[tuple[np.ndarray, int]]:
        sizes = rng.integers(10, 30, count)
        return [(rng.integers(0, 256, (size, 20, 3), np.uint8), int(rng.integers(3))) for size in sizes]

    local = write_set(
        folder / 'set', {'train': some(64), 'test': some(16)}, {'image': image_feature(-1, -1, 3), 'label': LABEL}
    )
    with object_store(folder / 'objects') as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.items():
            patch.setenv(name, value)
        upload(local, 'bucket/tfds')
        yield stored(folder / 'objects')


@pytest.fixture(scope='module')
def trainer(bucket, tmp_path_factory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='module')
def expected(trainer, bucket) -> str:
    """The hash of a run on the same set in a local folder."""
    local = trainer.folder / 'local'
    trainer.run(local, *FIELDS, f'data.data_dir={bucket.parents[2] / "set"}')
    return summary(local)['state_sha256']


def test_a_killed_run_resumes_exactly(trainer, bucket, expected):
    with killed_at_last(trainer.start('gs://bucket/killed', *FIELDS)) as process:
        wait_until((bucket / 'killed/checkpoints/00000004/commit_success.txt').exists, process)
        kill(process)
    assert not (bucket / 'killed/summary.json').exists()
    out = trainer.run('gs://bucket/killed', *FIELDS).out
    assert 'resum' in out, out
    assert json.loads((bucket / 'killed/summary.json').read_bytes())['state_sha256'] == expected
    kept = [path.name for path in (bucket / 'killed/data_cache').iterdir()]
    assert sorted(name.partition('-')[0] for name in kept) == ['labels_test', 'labels_train']


def test_two_processes_share_the_set(trainer, expected):
    """Their workdir is local: the emulator loses some of the writes of two processes at once."""
    trainer.run_processes(trainer.folder / 'two', *FIELDS, processes=2, devices=1)
    two, one = (summary(trainer.folder / name) for name in ('two', 'local'))
    assert two['step'] == one['step'] == 16
    np.testing.assert_allclose(two['loss'], one['loss'], rtol=1e-4)
