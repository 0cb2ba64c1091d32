"""The runs of a sweep: each in its own processes, several at a time, with their outcome in one live table."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dualcl_jax.system.errors import EXIT_RESTART
from experiments.ablation.measures import MEASURES, Measure
from experiments.ablation.records import write_record
from experiments.ablation.sweep import REPOSITORY, Job, Sweep

PERIOD = 0.5
"""Seconds between two checks of the processes."""
LEASHED = """
import ctypes, runpy, signal, sys
if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: if the sweep is killed, its runs are killed too
runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)
"""
"""Runs a module in a process that does not outlive the sweep, because a repeated call needs the workdir."""


@dataclasses.dataclass
class Running:
    """The process of a run, which trains and then `evaluates`."""

    job: Job
    process: subprocess.Popen
    evaluates: bool


@dataclasses.dataclass
class Outcome:
    """The outcome of the runs: values of those `done`, errors of those `failed`, names of those `stopped`."""

    done: dict[str, float | None]
    failed: dict[str, str]
    stopped: list[str]


class Signals:
    """A context in which SIGTERM and Ctrl-C are counted instead of ending the process."""

    count = 0

    def __enter__(self) -> 'Signals':
        self._before = {number: signal.signal(number, self._count) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run_jobs(folder: Path, sweep: Sweep, jobs: Sequence[Job], done: dict[str, float | None], at_once: int) -> Outcome:
    """Trains and evaluates the runs that have no record, and writes a record when each is done.

    A run that fails does not affect the others. After the first signal the current runs save themselves and no more are
    started; a second signal ends them at once.

    Args:
      folder: folder of the sweep, for `runs/`, `logs/` and `records/`.
      sweep: the sweep.
      jobs: all runs of this call.
      done: validation values of the runs that have a record.
      at_once: number of concurrent processes.
    """
    outcome = Outcome(dict(done), {}, [])
    waiting = [job for job in jobs if job.name not in done]
    running: list[Running] = []
    measure = MEASURES[sweep.measure]
    (folder / 'logs').mkdir(parents=True, exist_ok=True)
    with Signals() as signals, _shown(folder, measure, jobs, outcome, running) as show, _ended(running):
        obeyed = 0
        while running or (waiting and not signals.count):
            while waiting and len(running) < at_once and not signals.count:
                running.append(_train(folder, sweep.config, waiting.pop(0)))
            if signals.count > obeyed:
                obeyed = signals.count
                for one in running:
                    one.process.send_signal(signal.SIGTERM if obeyed == 1 and not one.evaluates else signal.SIGKILL)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                following = _after(folder, one, outcome, stopping=signals.count > 0)
                if following is not None:
                    running.append(following)
            show()
            time.sleep(PERIOD)
        outcome.stopped += [job.name for job in waiting]
        show()
    return outcome


def _train(folder: Path, config: str, job: Job) -> Running:
    fields = (f'--config.{field}' for field in job.fields)
    command = ['dualcl_jax.main', f'--config={REPOSITORY / config}', f'--workdir={folder / "runs" / job.name}', *fields]
    return Running(job, _start(folder, job, command), evaluates=False)


def _evaluate(folder: Path, job: Job) -> Running:
    """Measures the final encoder on the test data, which are used nowhere else."""
    protocols = ','.join(job.measure.protocols)
    command = ['dualcl_jax.evaluate', f'--workdir={folder / "runs" / job.name}', f'--protocols={protocols}']
    command += [f'--config.{field}' for field in job.settings]
    return Running(job, _start(folder, job, command), evaluates=True)


def _start(folder: Path, job: Job, command: Sequence[str]) -> subprocess.Popen:
    log = folder / 'logs' / job.name
    with log.with_name(f'{job.name}.out').open('a') as out, log.with_name(f'{job.name}.err').open('w') as err:
        return subprocess.Popen(
            [sys.executable, '-c', LEASHED, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,  # Ctrl-C goes to the sweep, which forwards it
        )


def _after(folder: Path, ended: Running, outcome: Outcome, *, stopping: bool) -> Running | None:
    """Records how a process ended, and starts the process that follows it, if any."""
    job, status = ended.job, ended.process.returncode
    if status == 0 and ended.evaluates:
        outcome.done[job.name] = write_record(folder, job)[job.measure.validation.key]
    elif status == 0 and not stopping:
        return _evaluate(folder, job)
    elif stopping or status == EXIT_RESTART:
        outcome.stopped.append(job.name)
    else:
        outcome.failed[job.name] = _last_words(folder, job) or f'exit status {status}'
    return None


def _last_words(folder: Path, job: Job) -> str:
    """The last line of stderr, or the one that names the error."""
    lines = (folder / 'logs' / f'{job.name}.err').read_text(errors='replace').strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    return (errors or lines or [''])[-1]


@contextlib.contextmanager
def _ended(running: list[Running]) -> Iterator[None]:
    """A context that kills the processes that are still running at its end."""
    try:
        yield
    finally:
        for one in running:
            one.process.kill()
            one.process.wait()


@contextlib.contextmanager
def _shown(folder: Path, measure: Measure, jobs: Sequence[Job], outcome: Outcome, running: list[Running]) -> Iterator:
    """Shows a live table on a terminal, elsewhere a line as each run ends; yields a function to call periodically."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if console.is_terminal:
        with Live(auto_refresh=False, console=console) as live:
            yield lambda: live.update(grid(folder, measure, jobs, outcome, running), refresh=True)
        return
    printed: set[str] = set(outcome.done)

    def show() -> None:
        for name in [name for name in (*outcome.done, *outcome.failed) if name not in printed]:
            printed.add(name)
            result = (
                f'failed: {outcome.failed[name]}'
                if name in outcome.failed
                else f'{measure.short} {measure.shown(outcome.done[name])}'
            )
            console.print(f'{name}  {result}  ({len(outcome.done)} of {len(jobs)} done)', markup=False)

    yield show


def grid(folder: Path, measure: Measure, jobs: Sequence[Job], outcome: Outcome, running: Sequence[Running]) -> Table:
    """A table of arms by seeds with the validation value × 100, or the progress of a run."""
    seeds = sorted({job.seed for job in jobs})
    under_way = {one.job.name: one for one in running}
    table = Table('arm', *(f'seed {seed}' for seed in seeds))
    table.caption = f'{len(outcome.done)} of {len(jobs)} runs done; {measure.title} on {measure.validation.label}'
    for arm in dict.fromkeys(job.arm for job in jobs):
        cells = []
        for seed in seeds:
            job = next((job for job in jobs if (job.arm, job.seed) == (arm, seed)), None)
            if job is None:
                cells.append('')
            elif job.name in outcome.done:
                cells.append(measure.shown(outcome.done[job.name]))
            elif job.name in outcome.failed:
                cells.append('failed')
            elif job.name in under_way:
                one = under_way[job.name]
                cells.append('evaluates' if one.evaluates else f'step {_step(folder, job)}/{job.steps}')
            else:
                cells.append('·')
        table.add_row(arm, *cells)
    return table


def _step(folder: Path, job: Job) -> int:
    """The last logged step of a run."""
    path = folder / 'runs' / job.name / 'metrics.jsonl'
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b'\n')]
    return json.loads(whole[-1])['step'] if whole else 0
