"""The functions train and evaluate: the same runs and errors as the commands, from a thread, and when interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import dualcl_jax
from configs import default
from dualcl_jax import evaluate as evaluate_program
from dualcl_jax import main
from dualcl_jax.api import session
from dualcl_jax.api.train import assignments
from dualcl_jax.system.config import load_config, override
from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.processes import heartbeat
from dualcl_jax.system.processes.stop_signal import StopSignal
from dualcl_jax.training import loop
from tests.support.runs import QUICK, REPOSITORY, TIMEOUT, free_port, killed_at_last, summary, write_npz


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(write_npz(tmp_path / 'given.npz')))


@pytest.fixture
def config(in_process, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of the quick configuration; JAX is set up as in the tests of programs."""
    monkeypatch.setattr('dualcl_jax.api.session.start', lambda *_, **__: None)
    return f'{REPOSITORY}/{QUICK}'


def test_same_run_as_the_command(in_process, config: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    own = {'model__name': 'tiny', 'steps': 3, 'data__image_size': 8}
    found = dualcl_jax.train(arrays, workdir=tmp_path / 'run', config=config, **own)
    assert found == summary(tmp_path / 'run')
    flags = ('--config.model.name=tiny', '--config.train.steps=3', f'--config.data.path={tmp_path}/given.npz')
    done = in_process(main.main, f'--config={QUICK}', f'--workdir={tmp_path}/command', *flags)
    assert done.status == 0, done
    assert summary(tmp_path / 'command')['state_sha256'] == found['state_sha256']
    again = dualcl_jax.train(arrays, workdir=tmp_path / 'run', config=load_config(config), **own)
    assert again == found
    records = dualcl_jax.evaluate(tmp_path / 'run', protocols=['knn'], fields={'knn.k': np.array([1, 5])})
    assert {record['k'] for record in records} == {1, 5}
    assert dualcl_jax.evaluate is evaluate_program  # one object, whatever was imported first


def test_a_refused_call_keeps_the_data(
    config: str, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {'model__name': 'tiny', 'steps': 2, 'config': config}
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert dualcl_jax.train(arrays, workdir='~/run', **own | {'steps': 1})['step'] == 1
    found = dualcl_jax.train(arrays, workdir='run', extend=True, **own)
    before = sorted((tmp_path / 'run').glob('data-*'))
    content = before[0].read_bytes()
    other = {name: array[::-1] for name, array in arrays.items()}
    for data, changed, message in ((other, {'batch_size': -5}, 'batch_size=-5'), (other, {}, 'not the data')):
        with pytest.raises(UserError, match=message):
            dualcl_jax.train(data, workdir='run', **own | changed)
        assert sorted((tmp_path / 'run').glob('data-*')) == before
        assert before[0].read_bytes() == content
    assert dualcl_jax.train(arrays, workdir='run', **own) == found
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'run').rename(tmp_path / 'elsewhere' / 'moved')
    monkeypatch.chdir(tmp_path / 'elsewhere')
    assert dualcl_jax.evaluate('moved', protocols='knn')
    with pytest.raises(UserError, match='batch_size=-5'):
        dualcl_jax.train(other, workdir='new', batch_size=-5, model__name='tiny')


def test_the_process_of_the_user_stays_as_it_was(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Also the first call, which sets up JAX. A message of the user's own code is shown; its programs are not kept."""
    program = f"""
import logging, sys, warnings
from absl import logging as absl_logging
import dualcl_jax
from dualcl_jax.system.quiet import WARNINGS
names = 'absl', 'asyncio', 'matplotlib', 'jax._src.xla_bridge'
def state():
    loggers = [(logger.level, list(logger.filters)) for logger in map(logging.getLogger, names)]
    return absl_logging.get_verbosity(), sys.unraisablehook, loggers
absl_logging.set_verbosity(absl_logging.INFO)
before, filters = state(), list(warnings.filters)
dualcl_jax.train(
    {str(tmp_path / 'given.npz')!r}, workdir={str(tmp_path / 'run')!r}, config={QUICK!r}, model__name='tiny', steps=2
)
assert state() == before, state()
assert set(filters) <= set(warnings.filters)
added = [found for found in warnings.filters if found not in filters]  # by libraries when they are imported
assert not any(found[1] and found[1].match(ours) for found in added for ours in WARNINGS), added
absl_logging.info('shown')
import jax, os
kept = sorted(os.listdir(jax.config.jax_compilation_cache_dir))
assert kept
images = jax.numpy.ones((8, 3, 32, 32))
jax.jit(lambda kernels: jax.lax.conv(images, kernels, (1, 1), 'SAME'))(jax.numpy.ones((16, 3, 3, 3)))
assert sorted(os.listdir(jax.config.jax_compilation_cache_dir)) == kept
"""
    environment = os.environ | {'XDG_CACHE_HOME': str(tmp_path), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)  # set where an earlier test has called a function
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith('shown\n')
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_config_of_an_earlier_version(config: str, tmp_path: Path) -> None:
    old = load_config(config)
    with old.unlocked():
        del old.parallel.start_s
    with pytest.raises(UserError, match='batch_size=-5'):
        dualcl_jax.train(config=old, workdir=tmp_path, batch_size=-5)


def test_errors_are_those_of_the_command(in_process, config: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        dualcl_jax.train(tmp_path / 'missing.npz', workdir=tmp_path / 'run', config=config)
    flags = (f'--config={QUICK}', f'--workdir={tmp_path}/run', f'--config.data.path={tmp_path}/missing.npz')
    assert in_process(main.main, *flags).err == f'error: {error.value}\n'
    with pytest.raises(UserError, match='either a workdir or exported=FILE'):
        dualcl_jax.evaluate()
    with pytest.raises(UserError, match='step=5: an exported encoder has only one step'):
        dualcl_jax.evaluate(exported='encoder', step=5)
    with pytest.raises(UserError, match='a tuple of 3'):
        dualcl_jax.train((np.zeros(1),) * 3, workdir=tmp_path / 'run', config=config)  # type: ignore[arg-type]
    for call, argument in (
        (lambda: dualcl_jax.train(workdir=None), 'workdir: NoneType'),  # type: ignore[arg-type]
        (lambda: dualcl_jax.train(workdir='run', config={}), 'config: dict'),  # type: ignore[arg-type]
        (lambda: dualcl_jax.evaluate(['run']), 'workdir: list'),  # type: ignore[arg-type]
        (lambda: dualcl_jax.load_encoder(3), 'path: int'),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=f'{argument}; give'):
            call()
    with pytest.raises(UserError, match='which must be local'):
        dualcl_jax.train(np.zeros((2, 8, 8, 3), np.uint8), workdir='gs://bucket/run', config=config)


def test_from_a_thread(config: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    results: list[dict] = []
    images = arrays['train_images'], arrays['train_labels']

    def work() -> None:
        results.append(dualcl_jax.train(images, workdir=tmp_path / 'run', config=config, model__name='tiny', steps=2))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0]['step'] == 2


@pytest.mark.slow
def test_interrupted(
    config: str, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {'model__name': 'tiny', 'steps': 4, 'config': config}
    whole = dualcl_jax.train(arrays, workdir=tmp_path / 'whole', **own)
    measured = loop.InFlight.add

    def interrupt(self, step, metrics):
        measured(self, step, metrics)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(loop.InFlight, 'add', interrupt)
        with pytest.raises(RestartError, match='call train again with the same arguments'):
            dualcl_jax.train(arrays, workdir=tmp_path / 'run', **own)
    assert signal.getsignal(signal.SIGINT) is before
    resumed = dualcl_jax.train(arrays, workdir=tmp_path / 'run', **own)
    assert resumed['resumed_from_step'] == 2
    assert resumed['state_sha256'] == whole['state_sha256']


def test_interrupt_in_a_process_of_the_user() -> None:
    with StopSignal(several_processes=False, ends_process=False) as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # nothing to save yet
    with StopSignal(several_processes=False, ends_process=False) as stop:
        assert not stop.after(1)
        signal.raise_signal(signal.SIGINT)
        assert stop.after(2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_during_the_first_imports_comes_after_them() -> None:
    """Python cannot import half of a package again."""
    done = []

    def imports(times: int) -> None:
        with session._interrupted_afterwards():
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            done.append(times)

    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            imports(times)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_the_watch_starts_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    config, started, ended = default.get_config(), [], []
    config.parallel.start_s = 0.1
    monkeypatch.setattr(heartbeat, '_end', ended.append)  # ends the process
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', interrupted)
        with pytest.raises(KeyboardInterrupt):
            heartbeat.Heartbeat(config).__enter__()
    (watch,) = started
    watch.join(10)
    assert not watch.is_alive()
    assert not ended


@pytest.mark.slow
def test_joined_processes_of_the_user_train_twice(tmp_path: Path) -> None:
    program = f"""
import sys
import jax, numpy as np
import dualcl_jax
jax.config.update('jax_platforms', 'cpu')
jax.distributed.initialize('127.0.0.1:{free_port()}', 2, int(sys.argv[1]))
images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
for name in 'first', 'second':
    found = dualcl_jax.train(
        (images, np.arange(64) % 4), workdir={str(tmp_path)!r} + '/' + name, config={QUICK!r},
        model__name='tiny', model__norm='local', steps=4, batch_size=16,
    )
    print('state', found['state_sha256'])
"""
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', program, str(index)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(killed_at_last(process))
        printed = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    states = [line for out, _ in printed for line in out.splitlines() if line.startswith('state ')]
    assert len(states) == 4
    assert len(set(states)) == 1


def test_names_of_fields() -> None:
    config = default.get_config()
    given = {'epochs': 3, 'model__name': 'tiny', 'train.steps': 5, 'crop_scale': (0.2, 1.0)}
    expected = ['train.epochs=3', 'model.name=tiny', 'train.steps=5', 'views.crop_scale=(0.2, 1.0)']
    assert assignments(config, given) == expected
    with pytest.raises(UserError, match='momentum: several fields have this name; choose from ema__momentum'):
        assignments(config, {'momentum': 0.9})
    assert assignments(config, {'no_such': 1}) == ['no_such=1']  # which `override` refuses


@pytest.mark.parametrize(
    'mean', [[0.25, 0.5, 0.75], np.array([0.25, 0.5, 0.75]), tuple(np.array([0.25, 0.5, 0.75])), jnp.arange(1, 4) / 4]
)
def test_sequences_and_arrays_as_values(mean) -> None:
    config = default.get_config()
    override(config, assignments(config, {'mean': mean, 'epochs': np.int64(3), 'learning_rate': np.float64(0.1)}))
    assert (config.data.mean, config.train.epochs, config.optimizer.learning_rate) == ((0.25, 0.5, 0.75), 3, 0.1)


def test_a_config_given_keeps_its_open_fields(config: str, tmp_path: Path) -> None:
    given = load_config('folder')
    with pytest.raises(UserError, match='missing'):
        dualcl_jax.train(tmp_path / 'missing', workdir=tmp_path / 'run', config=given, batch_size=8)
    assert given.train.batch_size is None
