"""Real runs that are killed, stopped, out of disk space or lose a peer. `long.py` runs all faults."""

import random
import signal
from pathlib import Path

import pytest

from tests.faults import injected, storage
from tests.support.runs import Trainer


@pytest.fixture(scope='module')
def expected(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp('expected') / 'run'
    trainer.run(workdir, *injected.LONG)
    return workdir


@pytest.mark.slow  # tests/training/test_resume.py kills twice
def test_killed(trainer: Trainer, expected: Path, tmp_path: Path) -> None:
    kills = list(injected.killed(trainer, tmp_path / 'run', random.Random(0), 2))
    assert kills
    assert all(steps <= 20 for _, steps, _ in kills)
    injected.assert_same_end(tmp_path / 'run', expected)


@pytest.mark.slow
def test_interrupted_twice_while_a_step_hangs(trainer: Trainer, tmp_path: Path) -> None:
    injected.interrupted_twice(trainer, tmp_path / 'run')


@pytest.mark.slow
def test_disk_is_full_at_the_end(trainer: Trainer, expected: Path, tmp_path: Path) -> None:
    storage.full_at_the_end(trainer, tmp_path / 'run', expected, ['figures/neighbours.png', 'summary.json'])


@pytest.mark.slow
def test_records_refused_to_the_end(trainer: Trainer, expected: Path, tmp_path: Path) -> None:
    storage.refused_records(trainer, tmp_path / 'run', expected)


@pytest.mark.slow
def test_workdir_vanishes(trainer: Trainer, expected: Path, tmp_path: Path) -> None:
    ended = storage.vanished(trainer, tmp_path / 'run', expected)
    assert 'Not a directory' in ended.err
    assert len(ended.err.splitlines()) <= 3


@pytest.mark.slow
def test_full_disk(trainer: Trainer, expected: Path, tmp_path: Path) -> None:
    (tmp_path / 'probe').mkdir()
    if not storage.can_mount(tmp_path / 'probe'):
        pytest.skip('needs unshare and nsenter, and leave to mount')
    ended = storage.full_disk(trainer, tmp_path / 'disk', expected)
    assert 'No space left on device' in ended.err
    assert len(ended.err.splitlines()) <= 3
    ended = storage.read_only_disk(trainer, tmp_path / 'read_only')
    assert 'Read-only file system' in ended.err


@pytest.mark.slow  # tests/workdir/test_listing.py has two threads for the processes
def test_one_of_two_cannot_read_a_checkpoint(trainer: Trainer, tmp_path: Path) -> None:
    injected.unreadable_in_one(trainer, tmp_path / 'run')


def test_second_run_on_a_workdir(trainer: Trainer, tmp_path: Path) -> None:
    storage.second_run(trainer, tmp_path / 'run')


@pytest.mark.parametrize(
    ('victim', 'how'),
    [
        (0, signal.SIGKILL),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_is_named(trainer: Trainer, tmp_path: Path, victim: int, how: int) -> None:
    injected.lost_process(trainer, tmp_path / 'run', victim, how)


@pytest.mark.slow
def test_a_process_that_hangs_is_named(trainer: Trainer, tmp_path: Path) -> None:
    injected.hung_process(trainer, tmp_path / 'run', 1)


@pytest.mark.slow
def test_a_step_that_hangs_in_all_processes(trainer: Trainer, tmp_path: Path) -> None:
    injected.hung_step(trainer, tmp_path / 'run')


def test_a_single_process_that_hangs(trainer: Trainer, tmp_path: Path) -> None:
    injected.hung_alone(trainer, tmp_path / 'run')


@pytest.mark.parametrize(
    ('phase', 'limit'),
    [
        ('start', 'start_s'),
        pytest.param('restore', 'save_s', marks=pytest.mark.slow),
        pytest.param('create', 'compile_s', marks=pytest.mark.slow),
    ],
)
def test_a_process_that_hangs_before_training(trainer: Trainer, tmp_path: Path, phase: str, limit: str) -> None:
    injected.hung_before_training(trainer, tmp_path / 'run', phase, limit)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGHUP])
def test_stopped_by_other_signals(trainer: Trainer, expected: Path, tmp_path: Path, number: int) -> None:
    injected.stopped(trainer, tmp_path / 'run', number, expected)


@pytest.mark.parametrize(
    ('number', 'whom'),
    [
        (signal.SIGTERM, (1,)),
        pytest.param(signal.SIGTERM, (0, 1), marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, (0,), marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, (0, 1), marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, (1,), marks=pytest.mark.slow),
    ],
)
def test_processes_stop_together(trainer: Trainer, tmp_path: Path, number: int, whom: tuple[int, ...]) -> None:
    injected.stopped_together(trainer, tmp_path / 'run', number, whom)


@pytest.mark.slow
def test_pictures_that_take_long(trainer: Trainer, tmp_path: Path) -> None:
    """Process 0 draws them alone; the others wait for it, longer than JAX would."""
    injected.slow_pictures(trainer, tmp_path / 'run')


@pytest.mark.slow
def test_batches_that_are_not_finite(trainer: Trainer, tmp_path: Path) -> None:
    injected.nonfinite(trainer, tmp_path)
