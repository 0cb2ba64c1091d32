"""The long form of the faults, and the table in docs/reliability.md: python -m tests.faults.long [--kills=50 ...].

Results are kept in runs/faults: after an interruption the same command continues with the next part. Remove the folder
to start over.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dualcl_jax.system.machine import processor
from tests.faults import environment, injected, storage
from tests.faults.damaged import damaged_checkpoints
from tests.faults.fuzz import READERS, fuzz
from tests.support.runs import REPOSITORY, Trainer, heed_signals, killed_at_last, wait_until

FOLDER = REPOSITORY / 'runs' / 'faults'
RESULTS = FOLDER / 'results.json'
PAGE = REPOSITORY / 'docs' / 'reliability.md'

Result = dict[str, Any]


def kills(trainer: Trainer, scratch: Path, expected: Path, count: int, seed: int = 8) -> Result:
    """kill -9, `count` times; every run ends in the state of the undisturbed one."""
    kept = FOLDER / 'kills.json'  # a kill takes minutes on a busy machine: an interrupted count continues
    done = json.loads(kept.read_text()) if kept.exists() else []
    rng = random.Random(seed + len(done))
    while len(done) < count:
        workdir, most = scratch / f'run{len(done)}', min(count - len(done), rng.randint(3, 8))
        fresh = list(injected.killed(trainer, workdir, rng, most))
        injected.assert_same_end(workdir, expected)
        shutil.rmtree(workdir)
        done += fresh
        kept.write_text(json.dumps(done))
        print(f'  {len(done)} kills, the last {len(fresh)}: {fresh}', flush=True)
    moments, steps, seconds = zip(*done, strict=True)
    return {
        'tried': len(done),
        'moments': dict(Counter(moments)),
        'steps_lost_most': max(steps),
        'seconds_lost_mean': statistics.mean(seconds),
        'seconds_lost_most': max(seconds),
    }


def signals(trainer: Trainer, scratch: Path, expected: Path) -> Result:
    """SIGTERM, SIGINT, SIGUSR1 and SIGHUP, in one process and two."""
    took = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        took[f'{number.name}, one process'] = injected.stopped(trainer, scratch / f'one{number}', number, expected)
        for whom in ((0,), (1,), (0, 1)):
            name = f'{number.name}, process {" and ".join(map(str, whom))} of two'
            took[name] = injected.stopped_together(trainer, scratch / f'{number}{whom}', number, whom)
    took['Ctrl-C twice'] = injected.interrupted_twice(trainer, scratch / 'twice')
    return {'tried': len(took), 'seconds': took, 'seconds_most': max(took.values())}


def disks(trainer: Trainer, scratch: Path, expected: Path) -> Result:
    """Disks that are full, read-only, missing or temporarily refuse writes; two runs in one workdir."""
    done = ['writes refused for a while', 'records refused to the end', 'full when the pictures are written']
    done += ['workdir moved away', 'second run on the workdir', 'torn last record']
    storage.refused_writes(trainer, scratch / 'refused', expected)
    storage.refused_records(trainer, scratch / 'records', expected)
    ends = ['figures/curves.png', 'figures/neighbours.png', 'report.html', 'summary.json']
    storage.full_at_the_end(trainer, scratch / 'end', expected, ends)
    storage.vanished(trainer, scratch / 'gone' / 'run', expected)
    storage.second_run(trainer, scratch / 'second')
    storage.torn_record(trainer, scratch / 'torn', expected)
    (scratch / 'probe').mkdir()
    if storage.can_mount(scratch / 'probe'):
        done += ['full disk', 'read-only disk']
        storage.full_disk(trainer, scratch / 'full', expected)
        storage.read_only_disk(trainer, scratch / 'read_only')
    return {'tried': len(done), 'done': done}


def peers(trainer: Trainer, scratch: Path, expected: Path) -> Result:
    """One of two processes is killed, stopped or hangs: how soon the other exits; the rerun ends in the same state."""
    del expected
    took: dict[str, list[float]] = {}
    whole = scratch / 'whole'
    injected.run_two(trainer, whole)
    for victim in (0, 1):
        for how in (signal.SIGKILL, signal.SIGSTOP):
            workdir = scratch / f'{how.name}{victim}'
            seconds, _ = injected.lost_process(trainer, workdir, victim, how)
            took.setdefault({'SIGKILL': 'killed', 'SIGSTOP': 'stopped'}[how.name], []).append(seconds)
            injected.run_two(trainer, workdir)
            injected.assert_same_end(workdir, whole)
        seconds, _ = injected.hung_process(trainer, scratch / f'hung{victim}', victim)
        took.setdefault('hung', []).append(seconds)
    return {'tried': sum(map(len, took.values())), 'seconds': {name: max(values) for name, values in took.items()}}


def environments(trainer: Trainer, scratch: Path, expected: Path) -> Result:
    """Hostile environments: each works, or gives one line and status 2; see `environment.py`."""
    del expected
    names = [name for name in environment.CASES if name not in environment.MOUNTING or environment.can_mount()]
    for name in names:
        folder = scratch / name.replace(' ', '_')
        folder.mkdir()
        environment.CASES[name](trainer, folder)
    return {'tried': len(names), 'done': names}


def hangs(trainer: Trainer, scratch: Path, expected: Path) -> Result:
    """Hangs that no other process notices: a step of both of two processes, and the input of a single one."""
    del expected
    seconds, _ = injected.hung_step(trainer, scratch / 'both')
    injected.run_two(trainer, scratch / 'both')
    injected.run_two(trainer, scratch / 'whole')
    injected.assert_same_end(scratch / 'both', scratch / 'whole')
    injected.hung_alone(trainer, scratch / 'alone')
    return {'tried': 2, 'seconds': seconds}


def numbers(trainer: Trainer, scratch: Path, expected: Path) -> Result:
    """Batches with a loss that is not finite: the run stops or skips them, and resumes exactly."""
    del expected
    return {'tried': injected.nonfinite(trainer, scratch)}


def checkpoints(trainer: Trainer, scratch: Path, expected: Path) -> Result:
    """Every file of a checkpoint, damaged in every way; see `damaged.py`."""
    del expected
    return damaged_checkpoints(trainer, scratch, flips=8)


def inputs(trainer: Trainer, scratch: Path, expected: Path, examples: int) -> Result:
    """Every reader, with invalid inputs; see `fuzz.py`."""
    del trainer, expected
    found = {}
    for name in READERS:
        (scratch / name.replace(' ', '_')).mkdir()
        found[name] = fuzz(name, scratch / name.replace(' ', '_'), examples)
        print(f'  {name}: {found[name]}', flush=True)
    return {'tried': sum(tried for tried, _ in found.values()), 'readers': found}


def soak(trainer: Trainer, scratch: Path, expected: Path, steps: int) -> Result:
    """A long run with a checkpoint every 100 steps: memory and step time in the second and the last quarter."""
    del expected
    workdir, memory = scratch / 'run', []
    flags = (f'train.steps={steps}', 'checkpoint.every_steps=100', 'log.every_steps=10', 'monitor.every_epochs=25')
    with killed_at_last(trainer.start(workdir, *flags)) as process:
        page = os.sysconf('SC_PAGE_SIZE')
        wait_until(lambda: injected.logged(workdir, 3), process)
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                memory.append(int(Path(f'/proc/{process.pid}/statm').read_text().split()[1]) * page)
            time.sleep(0.05)
        assert process.wait() == 0
    memory = [value for value in memory if value]  # 0 once it has ended
    pace = [32 / r['time/images_per_second'] for r in injected.read_torn(workdir) if 'time/images_per_second' in r]
    return {
        'tried': steps,
        'memory_mb': [round(value / 2**20) for value in quarters(memory)],
        'step_ms': [1000 * value for value in quarters(pace)],
    }


def quarters(values: list[float]) -> list[float]:
    """Medians of the second and of the last quarter of at least four values."""
    part = len(values) // 4
    return [statistics.median(some) for some in (values[part : 2 * part], values[-part:])]


def overhead(trainer: Trainer, scratch: Path, expected: Path, rounds: int) -> Result:
    """The cost of a checkpoint with the demo's model, from alternating blocks of steps with and without one."""
    del trainer, expected
    program = [sys.executable, '-m', 'tests.faults.overhead', str(scratch / 'run'), str(rounds)]
    done = subprocess.run(program, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


PARTS: dict[str, Callable[..., Result]] = {
    'kills': kills,
    'signals': signals,
    'checkpoints': checkpoints,
    'disks': disks,
    'peers': peers,
    'hangs': hangs,
    'environments': environments,
    'numbers': numbers,
    'inputs': inputs,
    'soak': soak,
    'overhead': overhead,
}


def seen(name: str, found: Result) -> str:
    """The table's text on the observations of one part."""
    if name == 'kills':
        return ', '.join(f'{count} {moment}' for moment, count in found['moments'].items())
    if name == 'signals':
        return f'at most {found["seconds_most"]:.1f} s from the signal to the exit'
    if name == 'checkpoints':
        return (
            f'{found["skipped"]} skipped in favour of the previous one, '
            f'{found["intact"]} with arrays that were intact nevertheless; '
            'all checkpoints damaged: an error, and nothing changed'
        )
    if name == 'hangs':
        return f'a step of two processes: {found["seconds"]:.1f} s with a limit of 6 s; the input of a single one'
    if name in ('disks', 'environments'):
        return ', '.join(found['done'])
    if name == 'peers':
        times = ', '.join(f'{seconds:.1f} s ({what})' for what, seconds in found['seconds'].items())
        return f'the other exited after {times}; the limits were 10 s (stopped) and 60 s (hung)'
    return 'stopped; skipped; skipped with a resume in between'


FAULTS = {
    'kills': 'kill -9 at a random moment',
    'signals': 'SIGTERM, Ctrl-C, SIGUSR1, SIGHUP, Ctrl-C twice',
    'checkpoints': 'a file of a checkpoint damaged',
    'disks': 'disk',
    'peers': 'one of two processes lost',
    'hangs': 'all processes hang',
    'environments': 'environment',
    'numbers': 'loss that is not finite',
}


def page(results: dict[str, Result]) -> str:
    """The text of docs/reliability.md for the completed parts."""
    done = {name: results[name] for name in FAULTS if name in results}
    tried = sum(found['tried'] for found in done.values())
    rows = [
        f'| {FAULTS[name]} | {found["tried"]} | {found["tried"]} | 0 | {seen(name, found)} |'
        for name, found in done.items()
    ]
    rows += [f'| {FAULTS[name]} | not run | | | |' for name in FAULTS if name not in done]
    text = f"""# Reliability

A run guarantees that no finished checkpoint is lost, that no damaged file is trusted, and that the result of an
interrupted run equals that of an undisturbed one. This page shows how these guarantees were tested. `make faults` runs
all tests, continues after an interruption, and writes this page; `pytest tests/faults` is the short form.

{results['conditions']['text']}

## Faults

Real runs of `tests/support/quick_config.py`, a network of two convolutions, 300 steps with a checkpoint every 10.
*Survived*: after a restart the run ended in the `state_sha256` and the records of an undisturbed run, or an error of at
most three lines named the fault and nothing was deleted. *Lost*: neither.

| fault | tried | survived | lost | observation |
|---|---|---|---|---|
{chr(10).join(rows)}
| total | {tried} | {tried} | 0 | |
"""
    if 'kills' in done:
        found = done['kills']
        text += f"""
According to the records, a kill cost {found['seconds_lost_mean']:.2f} s of training on average and
{found['seconds_lost_most']:.2f} s at most, or at most {found['steps_lost_most']} steps. Up to 20 are possible: the
steps since the last checkpoint and, while that one is still being written, the interval before it.
"""
    if 'inputs' in results:
        found = results['inputs']
        readers = '\n'.join(
            f'| {name} | {tried:,} | {refused:,} | {tried - refused:,} | 0 |'
            for name, (tried, refused) in found['readers'].items()
        )
        text += f"""
## Bad inputs

Files and texts changed at random by Hypothesis. Each must give a value or an error of at most three lines.

| reader | tried | rejected | read | other outcomes |
|---|---|---|---|---|
{readers}
| total | {found['tried']:,} | | | 0 |
"""
    if 'soak' in results:
        found = results['soak']
        memory, step = found['memory_mb'], found['step_ms']
        text += f"""
## Soak

{found['tried']:,} steps with {math.ceil(found['tried'] / 100)} checkpoints; medians of the second and the last quarter:

| | second quarter | last quarter |
|---|---|---|
| resident memory | {memory[0]} MB | {memory[1]} MB |
| time of a step | {step[0]:.1f} ms | {step[1]:.1f} ms |
"""
    if 'overhead' in results:
        cost = results['overhead']
        text += f"""
## Costs

The demo's model (`configs/quickstart.py`);
medians of {cost['rounds']} rounds of alternating blocks of {cost['steps']} steps:

| | |
|---|---|
| a step | {cost['step_s']:.2f} s |
| a checkpoint with its checksums: time for which training waits | {cost['blocked_s']:.2f} s |
| a checkpoint: additional time of a block that contains one | {cost['cost_s']:.2f} s |
| the same at the default `checkpoint.every_steps=500` | {100 * cost['share']:.2f} % of the time |
| the check of each step for numbers that are not finite | {100 * cost['finite_share']:+.1f} % of a step |
"""
    left = [name for name in PARTS if name not in results]
    return text + (f'\nNot run yet: {", ".join(left)}.\n' if left else '')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--examples', type=int, default=1000, help='inputs for each reader')
    parser.add_argument('--steps', type=int, default=2000, help='steps of the soak')
    parser.add_argument('--rounds', type=int, default=6, help='rounds of the overhead')
    parser.add_argument('--only', choices=PARTS, help='run only this part')
    flags = parser.parse_args()
    heed_signals()
    for variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):  # the process that forks for each run has no threads
        os.environ.setdefault(variable, '1')
    jax.config.update('jax_platforms', 'cpu')  # for the checkpoints that this process reads
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    numbers_of = {'kills': flags.kills, 'inputs': flags.examples, 'soak': flags.steps, 'overhead': flags.rounds}
    trainer, expected = Trainer(FOLDER), FOLDER / 'expected'
    if not (expected / 'summary.json').exists():
        trainer.run(expected, *injected.LONG)
    for name in [flags.only] if flags.only else PARTS:
        if name in results:
            continue
        print(f'{name}: {PARTS[name].__doc__}', flush=True)
        scratch = FOLDER / name
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        began = time.monotonic()
        arguments = (numbers_of[name],) if name in numbers_of else ()
        found = PARTS[name](trainer, scratch, expected, *arguments)
        results[name] = found | {'minutes': round((time.monotonic() - began) / 60, 1)}
        shutil.rmtree(scratch)
        results['conditions'] = {'text': conditions(results)}
        RESULTS.write_text(json.dumps(results, indent=1))
        PAGE.write_text(page(results))
        print(f'  {results[name]}', flush=True)


def conditions(results: dict[str, Result]) -> str:
    """Date, machine and versions of the last run."""
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'orbax-checkpoint'))
    minutes = sum(result.get('minutes', 0) for result in results.values())
    return (
        f'Last run: {datetime.date.today():%d %B %Y}, {os.cpu_count()} cores of {processor()},\n'
        f'Python {platform.python_version()}, {versions}, other programs running, {minutes:.0f} minutes.'
    )


if __name__ == '__main__':
    main()
