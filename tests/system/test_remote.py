"""Workdirs in Google Cloud Storage: the files of a run in an in-memory object store without appending."""

import json
import sys
from collections.abc import Callable, Iterator

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from configs import default
from dualcl_jax import load_encoder
from dualcl_jax.data.images import npz, tfds
from dualcl_jax.reports.figures import curves
from dualcl_jax.system.errors import UserError, ending
from dualcl_jax.system.files import check_output
from dualcl_jax.workdir import folder as workdir
from dualcl_jax.workdir import metrics
from dualcl_jax.workdir.saved_run import find_run, saved_steps
from tests.support.config_parts import data_config


class Bucket(MemoryFileSystem):
    """Opens a file like gcsfs, which turns mode 'a' into 'w'."""

    protocol = ('gs', 'gcs')
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = ['']  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix('gs://'))

    def _open(self, path, mode='rb', **options):
        return super()._open(path, mode.replace('a', 'w'), **options)


@pytest.fixture(autouse=True)
def buckets(monkeypatch) -> Iterator[Callable]:
    """A function that replaces the implementation of gs://."""
    forget = backend.fsspec_backend._get_filesystem.cache_clear
    forget()
    yield lambda implementation: monkeypatch.setitem(_registry, 'gcs', implementation)
    forget()


class Events:
    """TensorBoard's writer, which has its own client for such folders."""

    def write_event(self, event):
        pass

    flush = close = lambda self: None


def lines(folder: epath.Path) -> list[int]:
    return [json.loads(line)['step'] for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_files_of_a_run(buckets, monkeypatch):
    buckets(Bucket)
    monkeypatch.setattr(metrics, 'EventsWriter', lambda *arguments, **options: Events())
    remote = 'gs://bucket/run'
    folder = workdir.open_workdir(remote)
    assert str(folder) == remote
    config = default.get_config()
    workdir.write_config(folder, config)
    workdir.check_same_run(folder, workdir.stored_config(folder), config)
    config.seed = 1
    with pytest.raises(UserError, match='holds a run with a different seed'):
        workdir.check_same_run(folder, workdir.stored_config(folder), config)
    summary = {'step': 3, 'loss': 1.0, 'knn_top1': None, 'wall_time_s': 2.0, 'state_sha256': ''}
    workdir.write_json(folder / 'summary.json', summary)
    assert workdir.read_summary(folder) == summary
    assert saved_steps(folder) == []
    assert workdir.existing_or_new(remote) == folder

    log = metrics.MetricsLog(folder, 0)
    for step in range(1, 6):
        log.write(step, 0.0, {'train/loss': 1.0, 'train/loss_chance': 2.0})
    log.flush()
    assert lines(folder) == [1, 2, 3, 4, 5]
    log.write(6, 0.0, {'train/loss': 1.0})
    log.close()
    assert lines(folder) == [1, 2, 3, 4, 5, 6]
    again = metrics.MetricsLog(folder, 4)
    again.write(5, 0.0, {'train/loss': 1.0})
    again.close()
    assert lines(folder) == [1, 2, 3, 4, 5]

    curves(again.records, 'raw pixels', folder / 'figures' / 'curves.png')
    assert (folder / 'figures' / 'curves.png').read_bytes().startswith(b'\x89PNG')


class HttpError(Exception):
    """As that of gcsfs once its retries are used up."""

    code = 503


def test_a_store_that_fails_for_a_while(buckets, monkeypatch):
    """Records are kept until they can be written, and at the end the same command may be run again."""
    failing = []

    def fail():
        if failing:
            raise HttpError('503 backend error')

    class Store(Bucket):
        def _open(self, path, mode='rb', **options):
            if 'b' in mode and 'r' not in mode:
                fail()
            return super()._open(path, mode, **options)

    class Writer(Events):
        def flush(self):
            fail()

    buckets(Store)
    monkeypatch.setattr(metrics, 'EventsWriter', lambda *arguments, **options: Writer())
    monkeypatch.setattr(metrics, 'FLUSH_SECONDS', -1.0)
    folder = workdir.open_workdir('gs://bucket/away')
    log = metrics.MetricsLog(folder, 0)
    failing.append(True)
    log.write(1, 0.0, {'train/loss': 1.0})
    assert log.problem() == 'tensorboard/ cannot be written (503 backend error): no further events are written'
    log.flush()
    said = 'gs://bucket/away/metrics.jsonl cannot be written (503 backend error): records are kept until it can be'
    assert log.problem() == said
    assert [record['step'] for record in log.waiting()] == [1]
    with pytest.raises(OSError, match='backend error') as raised:
        log.close()
    assert ending(raised.value) == (
        75,
        'error: gs://bucket/away/metrics.jsonl: 503 backend error; fix that, and run the same command again',
    )
    failing.clear()
    log.close()
    assert lines(folder) == [1]


def test_a_checkpoint_that_is_not_finished(buckets):
    """Its folder has its name from the start; Orbax adds a mark at the end."""
    buckets(Bucket)
    folder = epath.Path('gs://bucket/unfinished')
    workdir.write_config(folder, default.get_config())
    for step in (10, 20):
        (folder / f'checkpoints/{step:08d}/state').mkdir(parents=True)
        (folder / f'checkpoints/{step:08d}/state/manifest.ocdbt').write_text('')
    assert saved_steps(folder) == []
    with pytest.raises(UserError, match='no run with a checkpoint'):
        find_run(str(folder))
    (folder / 'checkpoints/00000010/commit_success.txt').write_text('')
    assert saved_steps(folder) == [10]
    assert find_run(str(folder)) == (folder, [10])
    (folder / 'checkpoints/00000020/commit_success.txt').write_text('')
    assert saved_steps(folder) == [10, 20]


def test_a_folder_that_cannot_be_reached(buckets):
    class Refusing(Bucket):
        def exists(self, path, **options):
            raise RuntimeError('no credentials\nmore')

    buckets(Refusing)
    with pytest.raises(UserError, match=r'gs://bucket/other: cannot be reached \(RuntimeError: no credentials\)'):
        workdir.open_workdir('gs://bucket/other')


def test_without_gcsfs_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gcsfs', None)  # importing it raises ImportError, as without the package
    monkeypatch.delitem(_registry, 'gcs', raising=False)
    for check in (workdir.open_workdir, workdir.existing_or_new, find_run, check_output, load_encoder, npz_at, tfds_in):
        with pytest.raises(UserError, match=r"gs://bucket/run: .*gcsfs.*pip install 'dualcl-jax\[gcs\]'"):
            check('gs://bucket/run')


def npz_at(path: str) -> None:
    npz.load(data_config(path=path, memory_bytes=1))


def tfds_in(path: str) -> None:
    tfds.load(data_config(name='mine', data_dir=path))
