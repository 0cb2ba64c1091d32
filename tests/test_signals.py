"""Signals while a run trains, in one process. Several processes: test_resume.py."""

import signal

import pytest

from dualcl_jax.signals import StopSignal


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_first_signal_asks_for_a_stop(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignal(several_processes=False) as stop:
        assert not stop.after(1)
        signal.raise_signal(number)
        assert stop.after(2)
        assert stop.after(3)
        assert signal.getsignal(number) is before  # a second one would act as it always did
    assert signal.getsignal(number) is before


def test_second_interrupt_interrupts() -> None:
    with StopSignal(several_processes=False):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match='full'), StopSignal(several_processes=False):
        raise OSError('full')
    assert signal.getsignal(signal.SIGTERM) is before
