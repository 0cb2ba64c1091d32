"""Helpers for the tests of whole runs: a small data set, and the training command as real processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.support import forked

REPOSITORY = Path(__file__).parents[2]
QUICK = 'tests/support/quick_config.py'
TIMEOUT = 300
"""Seconds that any process of a test may take on a busy machine."""

Process = subprocess.Popen[str] | forked.Forked


def write_npz(path: Path, *, labels: bool = True, channels: int = 3, seed: int = 0) -> Path:
    """256 training and 64 test images, 16×16, of four classes that differ in their mean image."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(0, 255, (4, 16, 16, channels))

    def images(classes: np.ndarray) -> np.ndarray:
        return (0.6 * means[classes] + 0.4 * rng.uniform(0, 255, (len(classes), 16, 16, channels))).astype(np.uint8)

    train, test = np.arange(256) % 4, np.arange(64) % 4
    arrays = {'train_images': images(train), 'test_images': images(test)}
    if labels:
        arrays |= {'train_labels': train, 'test_labels': test}
    np.savez(path, **arrays)
    return path


class Finished(NamedTuple):
    """A process that has ended: its exit status, its output and its error output."""

    status: int
    out: str
    err: str

    def __repr__(self) -> str:
        return f'exit status {self.status}\n--- stdout\n{self.out}\n--- stderr\n{self.err}'


class Trainer:
    """Runs python -m dualcl_jax.main on one data set, each run in its own process.

    Compiled programs are shared through JAX's persistent cache in `folder`, so that the second run of a program starts
    in seconds. Where that is possible, a process that has imported everything forks for each run; see `forked`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: forked.Server | None = None
        self.data = write_npz(folder / 'data.npz')

    def start(
        self,
        workdir: Path,
        *flags: str,
        config: str = QUICK,
        devices: int = 1,
        within: Sequence[str] = (),
        folder: Path = REPOSITORY,
        **variables: str,
    ) -> Process:
        """Starts a run in `folder`; `flags` are those of the command line, with fields written without --config.

        `within` is a command that runs it, such as one that enters a namespace; `variables` are of its environment.
        """
        flags = tuple(flag if flag.startswith('--') else f'--config.{flag}' for flag in flags)
        arguments = [f'--config={config}', f'--workdir={workdir}', f'--config.data.path={self.data}', *flags]
        environment = self.environment(devices) | variables
        if forked.POSSIBLE and not within:
            self.server = self.server or forked.Server(environment, REPOSITORY)
            if self.server.suits(environment):
                return self.server.start(arguments, environment, folder)
        return subprocess.Popen(
            [*within, sys.executable, '-m', 'dualcl_jax.main', *arguments],
            cwd=folder,
            env=environment if folder == REPOSITORY else environment | {'PYTHONPATH': str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def environment(self, devices: int = 1) -> dict[str, str]:
        """The environment of a process with this many devices."""
        return os.environ | {
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0',
            'JAX_COMPILATION_CACHE_DIR': str(self.folder / 'cache'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'JAX_NUMPY_RANK_PROMOTION': 'raise',
            'JAX_NUMPY_DTYPE_PROMOTION': 'strict',
            'PYTHONUNBUFFERED': '1',
        }

    def run(
        self, workdir: Path, *flags: str, config: str = QUICK, devices: int = 1, status: int = 0, **variables: str
    ) -> Finished:
        """Runs to the end and asserts the exit status."""
        with killed_at_last(self.start(workdir, *flags, config=config, devices=devices, **variables)) as process:
            return finish(process, status)

    @contextlib.contextmanager
    def processes(
        self, workdir: Path, *flags: str, each: Sequence[Mapping[str, Any]] = ({}, {}), **options: Any
    ) -> Iterator[list[Process]]:
        """Starts one run of several processes, joined over the loopback interface.

        `each` has the options of `start` of every process, in their order, and `options` are those of all.
        """
        join = (f'--coordinator_address=127.0.0.1:{free_port()}', f'--num_processes={len(each)}')
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(
                    killed_at_last(self.start(workdir, *flags, *join, f'--process_id={index}', **options, **own))
                )
                for index, own in enumerate(each)
            ]

    def run_processes(
        self, workdir: Path, *flags: str, processes: int, devices: int, config: str = QUICK
    ) -> list[Finished]:
        """Runs several processes with `devices` each to the end."""
        with self.processes(workdir, *flags, each=[{}] * processes, config=config, devices=devices) as started:
            return [finish(process, 0) for process in started]


def heed_signals() -> None:
    """Handles two signals that a shell makes programs in the background, and their children, ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextlib.contextmanager
def killed_at_last(process: Process) -> Iterator[Process]:
    """Kills the process at the end of a test."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: Process, status: int) -> Finished:
    """Waits for the end and asserts the exit status."""
    out, err = process.communicate(timeout=TIMEOUT)
    finished = Finished(process.returncode, out, err)
    assert finished.status == status, finished
    assert 'pictures cannot be drawn' not in out, finished  # a warning, as the run is complete without them
    return finished


def kill(process: Process) -> None:
    """kill -9, as by a power cut or the out-of-memory killer."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def checkpoints(workdir: Path) -> list[int]:
    """Steps of the completed checkpoints of a run, in order."""
    found = (workdir / 'checkpoints').glob('*')
    return sorted(int(path.name) for path in found if re.fullmatch(r'\d+', path.name))


def died_after(workdir: Path, step: int, to: Path | None = None) -> Path:
    """Makes a complete run, or a copy of it, one that died right after the checkpoint of this step; returns which."""
    workdir = workdir if to is None else Path(shutil.copytree(workdir, to))
    assert step in checkpoints(workdir)
    for later in checkpoints(workdir):
        if later > step:
            shutil.rmtree(workdir / 'checkpoints' / f'{later:08d}')
    (workdir / 'summary.json').unlink()
    return workdir


def wait_until(condition: Any, process: Process | None) -> None:
    """Waits until `condition()` is true, while the process runs, if one is named."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, 'nothing happened in time'
        assert process is None or process.poll() is None, f'the process ended early: {process.communicate()}'
        time.sleep(0.01)


def records(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the values that depend on the clock."""
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != 'wall_time_s' and name[:5] != 'time/'}
        for line in lines
    ]


def column(workdir: Path, name: str) -> np.ndarray:
    """One metric of a run over its records, float64."""
    return np.array([record[name] for record in records(workdir) if name in record], np.float64)


def summary(workdir: Path) -> dict[str, Any]:
    """summary.json."""
    return json.loads((workdir / 'summary.json').read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
