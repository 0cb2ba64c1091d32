"""Every test runs on four forced CPU devices with strict rank and type promotion, to catch silent errors.

TEST_DEVICES=8 forces another number, for tests that support it.
"""

import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TEST_DEVICES', '4')
os.environ.setdefault('OMP_NUM_THREADS', '1')  # several pytest processes share the cores
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ['XLA_FLAGS'] = ' '.join(
    [
        os.environ.get('XLA_FLAGS', ''),
        f'--xla_force_host_platform_device_count={os.environ["TEST_DEVICES"]}',
        '--xla_backend_optimization_level=0',  # most programs in a test run only once
    ]
)

import hypothesis
import jax
import jax.numpy as jnp
import pytest

from dualcl_jax.method.views import images
from dualcl_jax.models.encoder import MODELS
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.processes import agreement, start
from tests.support.runs import REPOSITORY, Finished, Trainer, heed_signals

MODELS['smooth'] = MODELS['tiny']  # an allowed name; tests/support/quick_config.py provides its network

hypothesis.settings.register_profile('busy', deadline=None)  # for a machine with other programs running
hypothesis.settings.load_profile('busy')

LONGEST = (
    'training/test_resume.py', 'programs/test_evaluate.py', 'training/test_extend.py', 'faults/test_crashes.py',
    'programs/test_text_program.py', 'method/test_sharded_queue.py', 'training/test_parallel.py',
    'test_any_example.py', 'training/test_elastic.py', 'models/exports/test_exports.py', 'training/test_pretrained.py',
    'training/test_plan.py', 'step/test_step_options.py', 'training/test_golden.py', 'system/test_rendezvous.py',
    'programs/test_mistakes.py', 'training/test_text_runs.py', 'faults/test_checkpoints.py', 'reports/test_page.py',
    'evaluators/test_finetune.py', 'method/test_queue_loss.py',
)  # fmt: skip
"""The slowest files, which start first so that all processes finish at about the same time."""

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

PROGRAMS = tempfile.TemporaryDirectory()
"""The programs that this process has compiled: many tests compile the same ones. No other process uses the folder."""
jax.config.update('jax_compilation_cache_dir', PROGRAMS.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {os.path.join(os.path.dirname(__file__), name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


heed_signals()


@pytest.fixture(autouse=True)
def same_models() -> Iterator[None]:
    """Forgets models that a test adds, or replaces by loading a config a second time."""
    before = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(before)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs the `main` of a program in this process, with the devices, flags and strict types of the tests."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(REPOSITORY)
    monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
    for lasting in ('_add_xla_flags', '_keep_freed_memory', '_use_compilation_cache'):
        monkeypatch.setattr(start, lasting, lambda *_: None)

    def run(main: Callable[[], int], *arguments: str | Path) -> Finished:
        monkeypatch.setattr(sys, 'argv', [main.__module__, *map(str, arguments)])
        status = main()
        return Finished(status, *capsys.readouterr())

    return run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for the indexes of folders of images, which is this test's own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'dualcl_jax'


@pytest.fixture
def given_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches then contain both views as six channels, instead of random views of an image."""
    monkeypatch.setattr(images, 'make_views', lambda keys, given, specs, size: jnp.stack(jnp.split(given, 2, axis=-1)))


@pytest.fixture(scope='session')
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The training command, on a small data set."""
    return Trainer(tmp_path_factory.mktemp('trainer'))


@pytest.fixture(scope='session')
def finished(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 4, which tests must not change."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    trainer.run(workdir, 'model.name=tiny', 'train.steps=4', 'checkpoint.every_steps=2')
    return workdir


class Client:
    """The key-value store of several processes, which are threads here."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, name, value):
        self.values[name] = value

    def blocking_key_value_get(self, name, wait_ms):
        end = time.monotonic() + wait_ms / 1000
        while name not in self.values:
            if time.monotonic() > end:
                raise RuntimeError('DEADLINE_EXCEEDED')
            time.sleep(0.01)
        return self.values[name]


@pytest.fixture
def two_processes(monkeypatch):
    """Runs a function of the index in two threads that act as processes; returns their errors."""
    from jax._src import distributed

    here = threading.local()
    monkeypatch.setattr(time, 'sleep', lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05)))

    class State:
        num_processes = 2
        client = Client()
        process_id = property(lambda self: here.index)
        initialize_preemption_sync_manager = None  # must be there, but is not called

    monkeypatch.setattr(distributed, 'global_state', State())
    monkeypatch.setattr(agreement, '_calls', Counter())

    def run(check, present=(0, 1)):
        def one(index):
            here.index = index
            try:
                check(index)
            except UserError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, present))

    return run
