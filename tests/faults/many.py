"""Many processes of one run on this machine. python -m tests.faults.many prints how long they take to notice.

Real processes with a tiny network. The machine has fewer cores than the run has processes: times are upper bounds.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.runs import (
    Finished,
    Trainer,
    checkpoints,
    finish,
    free_port,
    killed_at_last,
    records,
    summary,
    wait_until,
)

FIELDS = (
    'train.steps=16',
    'checkpoint.every_steps=4',
    'checkpoint.keep=9',
    'negatives.selector=all',
    'parallel.timeout_s=230',
    'parallel.silence_s=120',
    'parallel.stall_s=250',
)
HALT_S = 600
"""Seconds that all processes may take together, on a machine that has far fewer cores."""


@contextlib.contextmanager
def started(
    trainer: Trainer, workdir: Path, count: int, *fields: str, late: int = -1, late_s: float = 5
) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts a run of `count` processes, one of them `late_s` seconds after the others."""
    join = (f'--coordinator_address=127.0.0.1:{free_port()}', f'--num_processes={count}')
    found: dict[int, subprocess.Popen[str]] = {}
    with contextlib.ExitStack() as stack:
        for index in sorted(range(count), key=lambda index: index == late):
            if index == late:
                time.sleep(late_s)
            process = trainer.start(workdir, *FIELDS, *fields, *join, f'--process_id={index}')
            found[index] = stack.enter_context(killed_at_last(process))
        yield [found[index] for index in range(count)]


def ends(processes: Sequence[subprocess.Popen[str]], began: float) -> list[float]:
    """Waits until all have ended; returns after how many seconds each did."""
    seconds: dict[int, float] = {}
    while len(seconds) < len(processes):
        assert time.monotonic() - began < HALT_S, f'{len(processes) - len(seconds)} processes have not ended'
        for index, process in enumerate(processes):
            if index not in seconds and process.poll() is not None:
                seconds[index] = time.monotonic() - began
        time.sleep(0.02)
    return [seconds[index] for index in range(len(processes))]


def complete(trainer: Trainer, workdir: Path, count: int, *fields: str) -> None:
    """Trains a run, or what is left of it, to its end."""
    with started(trainer, workdir, count, *fields) as processes:
        ends(processes, time.monotonic())
        for process in processes:
            finish(process, 0)


def lost(trainer: Trainer, workdir: Path, count: int, victim: int) -> tuple[list[float], list[Finished]]:
    """Kills a process with -9 after the first checkpoint; the last process starts late. All others name it.

    Returns after how many seconds each of the others ended, and how.
    """
    with started(trainer, workdir, count, late=count - 1) as processes:
        wait_until(lambda: checkpoints(workdir), processes[0])
        processes[victim].send_signal(signal.SIGKILL)
        others = [process for index, process in enumerate(processes) if index != victim]
        seconds = ends(others, time.monotonic())
        ended = [finish(process, 75) for process in others]
    for process in ended:
        assert f'process {victim} on ' in process.err.splitlines()[0], process
        assert len(process.err.splitlines()) == 2, process
    return seconds, ended


def missing(trainer: Trainer, workdir: Path, count: int, absent: int) -> list[Finished]:
    """A process is so late that the others give up."""
    with started(trainer, workdir, count, 'parallel.timeout_s=60', late=absent, late_s=0) as processes:
        processes[absent].send_signal(signal.SIGKILL)
        others = [process for index, process in enumerate(processes) if index != absent]
        ends(others, time.monotonic())
        return [finish(process, 75) for process in others]


def signalled(trainer: Trainer, workdir: Path, count: int) -> list[float]:
    """Sends SIGTERM to all processes; returns after how many seconds each had saved and ended."""
    with started(trainer, workdir, count) as processes:
        wait_until(lambda: checkpoints(workdir), processes[0])
        for process in processes:
            process.send_signal(signal.SIGTERM)
        seconds = ends(processes, time.monotonic())
        out = [finish(process, 75).out for process in processes]
    step = max(checkpoints(workdir))
    assert f'stopped after step {step} of 16 and saved' in out[0], out[0]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=16)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = Trainer(folder)
        began = time.monotonic()
        complete(trainer, folder / 'whole', count)
        found: dict[str, Any] = {'count': count, 'whole_run_s': time.monotonic() - began}
        seconds, _ = lost(trainer, folder / 'run', count, count // 3)
        found['others_ended_after_kill_s'] = [min(seconds), max(seconds)]
        seconds = signalled(trainer, folder / 'signalled', count)
        found['saved_and_ended_after_sigterm_s'] = [min(seconds), max(seconds)]
        complete(trainer, folder / 'run', count)
        found['equal'] = summary(folder / 'run')['state_sha256'] == summary(folder / 'whole')['state_sha256']
        found['equal_records'] = records(folder / 'run') == records(folder / 'whole')
    print(json.dumps(found | {'cores': os.cpu_count(), 'load': os.getloadavg()}))


if __name__ == '__main__':
    main()
