"""Signals during training in one process. For several processes see tests/training/test_resume.py."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dualcl_jax.system.errors import EXIT_INTERRUPTED, EXIT_RESTART
from dualcl_jax.system.processes import stop_signal
from dualcl_jax.system.processes.stop_signal import StopSignal
from dualcl_jax.system.processes.supervisor import STOPPING


def soon(condition) -> bool:
    """Whether a condition soon holds; another thread handles the signal."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The statuses and messages with which the process would have exited."""
    left: list[tuple[int, str]] = []
    monkeypatch.setattr(stop_signal, 'exit_at_once', lambda *ending: left.append(ending))
    return left


@pytest.mark.parametrize('number', STOPPING)
def test_first_signal_asks_for_a_stop(number: int, left: list) -> None:
    before = signal.getsignal(number)
    with StopSignal(several_processes=False) as stop:
        assert not stop.after(1)
        signal.raise_signal(number)
        assert soon(lambda: stop.after(2))
        assert stop.after(3)
    assert signal.getsignal(number) is before
    assert not left


def test_second_interrupt_stops_at_once(left: list) -> None:
    with StopSignal(several_processes=False) as stop:
        stop.after(1)
        for count in (1, 2):
            signal.raise_signal(signal.SIGINT)
            assert soon(lambda: stop._interrupts == count)  # noqa: B023 - called at once
    assert left == [(EXIT_INTERRUPTED, stop_signal.AT_ONCE)]


def test_second_sigterm_changes_nothing(left: list) -> None:
    """Schedulers send SIGTERM to every process of a job, and shells forward it."""
    with StopSignal(several_processes=False) as stop:
        stop.after(1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert soon(lambda: stop.after(2))
    assert not left


@pytest.mark.parametrize(
    ('number', 'status'),
    [(signal.SIGINT, EXIT_INTERRUPTED)] + [(n, EXIT_RESTART) for n in STOPPING if n != signal.SIGINT],
)
def test_before_the_first_step_there_is_nothing_to_save(number: int, status: int, left: list) -> None:
    with StopSignal(several_processes=False):
        signal.raise_signal(number)
        assert soon(lambda: len(left))
    assert left[0][0] == status
    assert 'run the same command' in left[0][1]


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match='full'), StopSignal(several_processes=False):
        raise OSError('full')
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ('number', 'ends_process'), [(signal.SIGHUP, True), (signal.SIGINT, True), (signal.SIGINT, False)]
)
def test_a_signal_ignored_from_the_start_stays_ignored(left: list, number: int, ends_process: bool) -> None:
    """As SIGHUP by nohup, and SIGINT in a command that a shell runs in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignal(several_processes=False, ends_process=ends_process) as stop:
            signal.raise_signal(number)
            assert not stop.after(1)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert not left


def test_in_another_thread() -> None:
    """Python handles signals in its main thread."""

    def work() -> bool:
        with StopSignal(several_processes=False) as stop:
            return stop.after(1)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() is False
