"""Faults of the disk and of files in a workdir, in the manner of `injected.py`."""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.injected import CONFIG, LONG, assert_same_end, logged
from tests.support.runs import Finished, Trainer, checkpoints, finish, kill, killed_at_last, summary, wait_until


@contextlib.contextmanager
def own_disk(folder: Path, kilobytes: int) -> Iterator[tuple[list[str], Path]]:
    """Mounts a file system at `folder`; yields a command prefix for processes that see it, and its path from here."""
    script = f'mount -t tmpfs -o size={kilobytes}k disk {folder} && echo mounted && exec sleep 3600'
    holder = subprocess.Popen(['unshare', '-rm', 'sh', '-c', script], stdout=subprocess.PIPE, text=True)
    with killed_at_last(holder):
        assert holder.stdout is not None
        assert holder.stdout.readline() == 'mounted\n'
        inside = ['nsenter', '-t', str(holder.pid), '-m', '-U', '--preserve-credentials', f'--wd={os.getcwd()}']
        yield inside, Path(f'/proc/{holder.pid}/root{folder}')


def can_mount(folder: Path) -> bool:
    """Whether this machine allows `own_disk`."""
    with contextlib.suppress(OSError, AssertionError), own_disk(folder, 64) as (inside, _):
        return subprocess.run([*inside, 'true'], check=False, capture_output=True).returncode == 0
    return False


def full_disk(trainer: Trainer, folder: Path, expected: Path) -> Finished:
    """A disk that is full after some checkpoints; after space is freed, the run resumes."""
    folder.mkdir()
    with own_disk(folder, 300) as (inside, seen):
        flags = (*LONG, 'checkpoint.keep=9')
        with killed_at_last(trainer.start(folder / 'run', *flags, within=inside)) as process:
            stopped = finish(process, 2)
        steps = checkpoints(seen / 'run')
        assert steps, 'the disk was full before the first checkpoint'
        subprocess.run([*inside, 'mount', '-o', 'remount,size=64m', str(folder)], check=True)
        with killed_at_last(trainer.start(folder / 'run', *flags, within=inside)) as process:
            finish(process, 0)
        assert summary(seen / 'run')['resumed_from_step'] == steps[-1]
        assert_same_end(seen / 'run', expected)
    return stopped


def read_only_disk(trainer: Trainer, folder: Path) -> Finished:
    """A read-only disk."""
    folder.mkdir()
    with own_disk(folder, 8000) as (inside, seen):
        subprocess.run([*inside, 'mount', '-o', 'remount,ro', str(folder)], check=True)
        with killed_at_last(trainer.start(folder / 'run', *LONG, within=inside)) as process:
            refused = finish(process, 2)
        assert not (seen / 'run').exists()
    return refused


def refused_writes(trainer: Trainer, workdir: Path, expected: Path, fields: Sequence[str] = LONG) -> Finished:
    """Writes fail for a while; the run continues, keeps its records, and writes them later."""
    with killed_at_last(trainer.start(workdir, *fields)) as process:
        wait_until(lambda: checkpoints(workdir) and logged(workdir, 3), process)
        limit = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        assert process.stdout is not None
        assert any('could not be saved' in line for line in process.stdout), 'it reported nothing'
        assert checkpoints(workdir)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
        ended = finish(process, 0)
    assert ended.err == ''
    assert_same_end(workdir, expected)
    return ended


def vanished(trainer: Trainer, workdir: Path, expected: Path) -> Finished:
    """The workdir is moved away during a run, and moved back."""
    away = workdir.with_name('away')
    with killed_at_last(trainer.start(workdir, *LONG, 'checkpoint.every_steps=100')) as process:
        wait_until(lambda: logged(workdir, 3), process)
        workdir.rename(away)
        workdir.write_text('in its way')
        stopped = finish(process, 75)
    workdir.unlink()
    away.rename(workdir)
    trainer.run(workdir, *LONG, 'checkpoint.every_steps=100')
    assert_same_end(workdir, expected)
    return stopped


def full_at_the_end(trainer: Trainer, workdir: Path, expected: Path, names: Sequence[str]) -> None:
    """The disk is full when the final files are written, for one file after another; then there is space."""
    flags = (*LONG, 'log.pictures=True')
    for name in names:
        stopped = trainer.run(workdir, *flags, config=CONFIG, status=2, DUALCL_FULL=Path(name).name)
        said = (
            f'error: {workdir / name}: No space left on device; free some space there, and run the same command again\n'
        )
        assert stopped.err == said, stopped
        assert not (workdir / name).exists()
        assert checkpoints(workdir) == [300]
    trainer.run(workdir, *flags, config=CONFIG)
    assert not list(workdir.rglob('*.new'))
    assert (workdir / 'figures' / 'neighbours.png').exists()
    assert (workdir / 'report.html').exists()
    assert summary(workdir)['images_per_second'] is not None
    assert_same_end(workdir, expected)


def refused_records(trainer: Trainer, workdir: Path, expected: Path) -> None:
    """From some step to its end a run can write checkpoints but no records: the checkpoints keep the records."""
    file = workdir / 'metrics.jsonl'
    with killed_at_last(trainer.start(workdir, *LONG)) as process:
        wait_until(lambda: logged(workdir, 3), process)
        file.rename(workdir / 'away')
        (file / 'in its way').mkdir(parents=True)
        stopped = finish(process, 2)
    assert len(stopped.err.splitlines()) == 1, stopped
    assert stopped.err.startswith(f'error: {file}: '), stopped
    shutil.rmtree(file)
    (workdir / 'away').rename(file)
    trainer.run(workdir, *LONG)
    assert_same_end(workdir, expected)


def second_run(trainer: Trainer, workdir: Path) -> None:
    """Two runs in one workdir: the second is rejected, the first is unaffected."""
    fields = (*LONG, 'train.steps=40')
    hangs = {'DUALCL_HANG': '0:30'}  # so that it is there for as long as the second needs
    with killed_at_last(trainer.start(workdir, *fields, config=CONFIG, **hangs)) as process:
        wait_until(lambda: logged(workdir), process)
        refused = trainer.run(workdir, *fields, config=CONFIG, status=2)
        assert process.poll() is None
        kill(process)
    assert f'--workdir={workdir}: another process ({process.pid}) trains in it' in refused.err, refused
    assert len(refused.err.splitlines()) == 1
    trainer.run(workdir, *fields, config=CONFIG)  # a lock dies with its process


def torn_record(trainer: Trainer, workdir: Path, expected: Path) -> None:
    """The last record is truncated, as by a crash."""
    with killed_at_last(trainer.start(workdir, *LONG)) as process:
        wait_until(lambda: max(checkpoints(workdir), default=0) >= 20, process)
        kill(process)
    file = workdir / 'metrics.jsonl'
    file.write_bytes(file.read_bytes()[:-30])
    trainer.run(workdir, *LONG)
    assert_same_end(workdir, expected)
