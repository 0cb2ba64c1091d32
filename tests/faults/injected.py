"""Faults injected into real runs. Each function injects a fault into one run and returns the observation, or fails.

The short form is in the tests beside this file, the long form in `long.py`.
"""

import errno
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.support.runs import (
    Finished,
    Trainer,
    checkpoints,
    died_after,
    finish,
    kill,
    killed_at_last,
    records,
    summary,
    wait_until,
)

CONFIG = 'tests/faults/config.py'
LONG = ('train.steps=300', 'checkpoint.every_steps=10', 'checkpoint.keep=1', 'log.every_steps=7')
PEERS = ('parallel.silence_s=10', 'parallel.stall_s=60', 'checkpoint.every_steps=20', 'train.steps=600')


def assert_same_end(run: Path, expected: Path) -> None:
    """Asserts that state, records and summary equal those of an undisturbed run."""
    assert summary(run)['state_sha256'] == summary(expected)['state_sha256']
    assert records(run) == records(expected)
    for name in ('step', 'images_seen', 'loss'):
        assert summary(run)[name] == summary(expected)[name] is not None, name


def logged(workdir: Path, count: int = 1) -> bool:
    """Whether a run has written at least `count` records."""
    file = workdir / 'metrics.jsonl'
    return file.exists() and file.read_bytes().count(b'\n') >= count


# --- kill -9


def moment(workdir: Path) -> str:
    """What a run was doing when it was killed, inferred from its files."""
    names = [path.name for path in (workdir / 'checkpoints').glob('*')] if (workdir / 'checkpoints').exists() else []
    if any('tmp' in name for name in names):
        return 'during a save'
    if len(names) > 1:
        return 'during a deletion'
    return 'between saves' if names else 'before the first checkpoint'


def killed(trainer: Trainer, workdir: Path, rng: random.Random, kills: int) -> Iterator[tuple[str, int, float]]:
    """Trains a run to its end, and kills it up to `kills` times at random moments.

    Yields, for each kill, its moment and the steps and seconds of training that it cost.
    """
    for _ in range(kills):
        before = max(checkpoints(workdir), default=0)
        with killed_at_last(trainer.start(workdir, *LONG)) as process:
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, 6))  # during the start, or soon after
            else:
                wait_until(lambda: process.poll() is not None or max(checkpoints(workdir), default=0) > before, None)  # noqa: B023
                time.sleep(rng.uniform(0, 1))
            if process.poll() is not None:
                finish(process, 0)
                return
            kill(process)
        saved = max(checkpoints(workdir), default=0)
        at = [record for record in read_torn(workdir) if record['step'] > saved]
        lost = at[-1]['wall_time_s'] - at[0]['wall_time_s'] if at else 0.0
        yield moment(workdir), (at[-1]['step'] - saved if at else 0), lost
    trainer.run(workdir, *LONG)


def read_torn(workdir: Path) -> list[dict]:
    """The records, with their times, of a file whose last line may be incomplete."""
    from etils import epath

    from dualcl_jax.workdir.metrics import read_records

    return read_records(epath.Path(workdir) / 'metrics.jsonl')


# --- checkpoints


DAMAGES = ('missing', 'truncated', 'empty', 'a bit flipped', 'zeros')


def damage(file: Path, how: str, rng: random.Random) -> None:
    """Damages a file in one of the ways `DAMAGES`."""
    content = bytearray(file.read_bytes())
    if how == 'missing':
        file.unlink()
        return
    if how == 'a bit flipped' and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    changed = {'truncated': content[: len(content) // 2], 'empty': b'', 'zeros': bytes(len(content))}
    file.write_bytes(changed.get(how, content))


# --- signals, one process


def stopped(trainer: Trainer, workdir: Path, number: int, expected: Path) -> float:
    """Sends a signal to a single process; returns how long it took to save and exit."""
    with killed_at_last(trainer.start(workdir, *LONG)) as process:
        wait_until(lambda: logged(workdir, 3), process)
        process.send_signal(number)
        began = time.monotonic()
        ended = finish(process, 75)
        took = time.monotonic() - began
    step = max(checkpoints(workdir))
    assert ended.out.splitlines()[-1] == f'stopped after step {step} of 300 and saved; run the same command to resume'
    trainer.run(workdir, *LONG)
    assert summary(workdir)['resumed_from_step'] == step
    assert_same_end(workdir, expected)
    return took


def interrupted_twice(trainer: Trainer, workdir: Path) -> float:
    """Presses Ctrl-C twice while a step hangs; returns how long it took to exit."""
    with killed_at_last(trainer.start(workdir, *LONG, config=CONFIG, DUALCL_HANG='0:30')) as process:
        wait_until(lambda: 30 in checkpoints(workdir), process)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        ended = finish(process, 130)
        took = time.monotonic() - began
    assert ended.err.splitlines()[-1].startswith('stopped at once; run the same command')
    return took


# --- several processes


def run_two(trainer: Trainer, workdir: Path) -> None:
    """Trains a run of two processes to its end."""
    trainer.run_processes(workdir, *PEERS, processes=2, devices=1, config=CONFIG)


def unreadable_in_one(trainer: Trainer, workdir: Path) -> None:
    """One of two processes cannot read the newest checkpoint: both exit with 75, or skip it if it is damaged."""
    fields = ('train.steps=6', 'checkpoint.every_steps=2', 'checkpoint.keep=9')
    trainer.run_processes(workdir, *fields, processes=2, devices=1, config=CONFIG)
    expected = summary(workdir)['state_sha256']
    died_after(workdir, 4)
    with trainer.processes(workdir, *fields, config=CONFIG, DUALCL_UNREADABLE=f'1:4:{errno.EIO}') as processes:
        for process in processes:
            said = finish(process, 75).err
            assert f'{workdir}/checkpoints/00000004: cannot be read now (process 1: Input/output error)' in said
    assert checkpoints(workdir) == [2, 4]
    assert not (workdir / 'damaged').exists()
    with trainer.processes(workdir, *fields, config=CONFIG, DUALCL_UNREADABLE='1:4:0') as processes:
        for process in processes:
            finish(process, 0)
    assert (workdir / 'damaged/00000004').is_dir()
    assert summary(workdir)['resumed_from_step'] == 2
    assert summary(workdir)['state_sha256'] == expected
    assert checkpoints(workdir) == [2, 4, 6]


def lost_process(trainer: Trainer, workdir: Path, victim: int, how: int) -> tuple[float, Finished]:
    """Kills (SIGKILL) or stops (SIGSTOP) one of two processes; returns how long the other took to exit, and how."""
    with trainer.processes(workdir, *PEERS, config=CONFIG) as processes:
        wait_until(lambda: checkpoints(workdir), processes[0])
        processes[victim].send_signal(how)
        began = time.monotonic()
        ended = finish(processes[1 - victim], 75)
        took = time.monotonic() - began
    assert len(ended.err.splitlines()) == 2, ended
    assert f'process {victim} on ' in ended.err.splitlines()[0], ended
    return took, ended


def hung_process(trainer: Trainer, workdir: Path, victim: int) -> tuple[float, Finished]:
    """One of two processes hangs but still sends heartbeats; returns how long the other took to exit, and how."""
    with trainer.processes(workdir, *PEERS, config=CONFIG, DUALCL_HANG=f'{victim}:30') as processes:
        wait_until(lambda: checkpoints(workdir), processes[0])
        began = time.monotonic()
        ended = finish(processes[1 - victim], 75)
        took = time.monotonic() - began
        finish(processes[victim], 75)
    assert f'process {victim} on ' in ended.err.splitlines()[0], ended
    assert 'has not got past step' in ended.err, ended
    return took, ended


def hung_step(trainer: Trainer, workdir: Path) -> tuple[float, list[Finished]]:
    """A step hangs in both processes; returns how long they took to exit, and how."""
    limits = ('checkpoint.every_steps=10', 'parallel.step_s=6')
    with trainer.processes(workdir, *PEERS, *limits, config=CONFIG, DUALCL_HANG_STEP='30') as processes:
        wait_until(lambda: 30 in checkpoints(workdir), processes[0])
        began = time.monotonic()
        ended = [finish(process, 75) for process in processes]
        took = time.monotonic() - began
    for done in ended:
        first, second = done.err.splitlines()
        assert re.match(
            r'error: (process \d on \S+ stopped: )?process \d on \S+ hangs: step of step 3\d takes longer than '
            r'parallel.step_s=6; the last step finished was 30',
            first,
        ), done
        assert second == 'run the same command in all processes again: they resume from the last checkpoint', done
    return took, ended


def hung_alone(trainer: Trainer, workdir: Path) -> Finished:
    """A single process waits forever for its data."""
    ended = trainer.run(workdir, *LONG, 'parallel.input_s=5', config=CONFIG, status=75, DUALCL_HANG='0:30')
    assert 'this process hangs: input of step 31 takes longer than parallel.input_s=5' in ended.err, ended
    assert max(checkpoints(workdir)) == 30
    return ended


def hung_before_training(trainer: Trainer, workdir: Path, phase: str, limit: str) -> None:
    """A single process hangs before its first step, while it examines its data or restores or creates its state."""
    ended = trainer.run(workdir, *LONG, f'parallel.{limit}=2', config=CONFIG, status=75, DUALCL_HANG_IN=phase)
    assert ended.err.startswith(f'error: this process hangs: {phase} takes longer than parallel.{limit}=2\n'), ended


def stopped_together(trainer: Trainer, workdir: Path, number: int, whom: tuple[int, ...]) -> float:
    """Signals one or both of two processes, which save the same step and exit with 75; returns how long it took."""
    with trainer.processes(workdir, *PEERS, 'log.every_steps=1', config=CONFIG) as processes:
        wait_until(lambda: logged(workdir, 4), processes[0])
        for index in whom:
            processes[index].send_signal(number)
        began = time.monotonic()
        first, _ = (finish(process, 75) for process in processes)
        took = time.monotonic() - began
    step = max(checkpoints(workdir))
    assert f'stopped after step {step} of 600 and saved; run the same command' in first.out
    assert len(records(workdir)) == step
    return took


def slow_pictures(trainer: Trainer, workdir: Path) -> None:
    """One of two processes draws the pictures for longer than JAX waits for a process at the end."""
    with trainer.processes(workdir, 'train.steps=2', 'log.pictures=True', config=CONFIG, DUALCL_DRAW='20') as processes:
        for process in processes:
            assert finish(process, 0).err == ''
    assert summary(workdir)['step'] == 2


# --- numbers


def with_flat_images(trainer: Trainer, path: Path, count: int) -> set[int]:
    """Writes the data with some images of one colour, for which `fragile` gives NaN; returns the ids of those."""
    with np.load(trainer.data) as arrays:
        content = dict(arrays)
    flat = np.random.default_rng(0).choice(len(content['train_images']), count, replace=False)
    content['train_images'][flat] = 0
    np.savez(path, **content)
    return set(flat.tolist())


def nonfinite(trainer: Trainer, folder: Path) -> int:
    """Two of 16 batches have a loss that is not finite: the run stops, or skips them, also when it resumes in between.

    Returns the number of runs.
    """
    flat = with_flat_images(trainer, folder / 'flat.npz', 1)
    fields = ('model.name=fragile', 'train.steps=16', 'checkpoint.every_steps=2', 'checkpoint.keep=9')
    fields += (f'data.path={folder / "flat.npz"}',)
    refused = trainer.run(folder / 'run', *fields, config=CONFIG, status=2)
    last = records(folder / 'run')[-1]
    assert f'train/loss is nan at step {last["step"]} (examples ' in refused.err
    assert len(last['skipped_ids']) == 32
    assert flat <= set(last['skipped_ids'])
    assert max(checkpoints(folder / 'run'), default=0) < last['step']

    refused = trainer.run(folder / 'run', *fields, '--skip_nonfinite=1', config=CONFIG, status=2)
    assert '--skip_nonfinite=2' in refused.err
    trainer.run(folder / 'run', *fields, '--skip_nonfinite=2', config=CONFIG)
    trainer.run(folder / 'whole', *fields, '--skip_nonfinite=2', config=CONFIG)
    assert_same_end(folder / 'run', folder / 'whole')
    skipped = summary(folder / 'whole')['skipped_steps']
    recorded = [record for record in records(folder / 'whole') if 'skipped_ids' in record]
    assert skipped == [record['step'] for record in recorded]
    assert all(flat <= set(record['skipped_ids']) for record in recorded)
    assert len(skipped) == 2

    between = max(step for step in checkpoints(folder / 'whole') if step <= skipped[0] + 1)
    again = died_after(folder / 'whole', between, folder / 'again')
    trainer.run(again, *fields, '--skip_nonfinite=2', config=CONFIG)
    assert summary(again)['resumed_from_step'] == between in (skipped[0], skipped[0] + 1)
    assert_same_end(again, folder / 'whole')
    return 5
