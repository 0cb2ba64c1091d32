"""Stopping on a signal after the current step, so that a run can save its state first."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from dualcl_jax.system.errors import EXIT_INTERRUPTED, EXIT_RESTART, exit_at_once
from dualcl_jax.system.private_jax import distributed_state, start_preemption_service
from dualcl_jax.system.processes import heartbeat
from dualcl_jax.system.processes.agreement import from_all
from dualcl_jax.system.processes.supervisor import STOPPING

AGAIN = 'stopping after the current step; press Ctrl-C again to stop at once and lose what is not saved yet'
AT_ONCE = 'stopped at once; run the same command to resume from the last checkpoint'
NOTHING_YET = 'stopped before the first step was completed; run the same command to continue'
SIGNALLED = 'it received a signal before the first step was completed'
"""Why a process stopped that a signal ended while there was nothing to save, for the other processes of its run."""


@contextlib.contextmanager
def exits_on_signals() -> Iterator[None]:
    """A context in which a signal of `STOPPING` other than Ctrl-C ends the process with exit status 75.

    It covers a run until a `StopSignal` takes over. Outside the main thread, it does nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    handled = [n for n in STOPPING if main and n != signal.SIGINT and signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _leave_at_once) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    exit_at_once(EXIT_RESTART, NOTHING_YET)


class StopSignal:
    """A context in which the first signal of `STOPPING` requests a stop, and a second Ctrl-C ends the process at once.

    Until the first call of `after` there is nothing to save: a signal ends the process and the others of its run, with
    exit status 75 unless it is Ctrl-C. A separate thread handles the signals, because the main thread may be blocked in
    a program on the devices. A signal that the process was started to ignore, such as SIGHUP by nohup, stays ignored.
    Python handles signals in its main thread: in any other thread, the context does nothing in a run of a single
    process.

    Several processes must stop after the same step, or those that continue would wait forever for the others. In that
    case JAX's preemption service, which starts once all of them have come to the end of their first step, handles
    SIGTERM and agrees on the step; the first of the other signals is forwarded to it.

    Args:
      several_processes: whether the run has more than one process.
      ends_process: whether the run may end the process. If it may not, as in a notebook, only Ctrl-C is handled, in the
        main thread: it raises KeyboardInterrupt where there is nothing to save, and when it is pressed again.
    """

    def __init__(self, *, several_processes: bool, ends_process: bool = True) -> None:
        self._several, self._ends_process = several_processes, ends_process
        self._main = threading.current_thread() is threading.main_thread()
        self._handled = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        self._asked, self._began, self._interrupts = threading.Event(), False, 0

    def __enter__(self) -> 'StopSignal':
        if not self._main:
            return self
        if not self._ends_process:
            handled = {signal.SIGINT}.intersection(self._handled)
            self._before = {number: signal.signal(number, self._interrupt) for number in handled}
            return self
        self._numbers, writing = socket.socketpair()
        writing.setblocking(False)
        self._writing = writing
        self._wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _ignore) for number in self._handled}
        self._thread = threading.Thread(target=self._listen, name='dualcl-signals', daemon=True)
        self._thread.start()
        return self

    def _listen(self) -> None:
        while received := self._numbers.recv(1):
            number = received[0]
            if number not in self._handled:
                continue
            self._interrupts += number == signal.SIGINT
            if self._interrupts > 1:
                exit_at_once(EXIT_INTERRUPTED, AT_ONCE)
            if not self._began:
                heartbeat.end_others(SIGNALLED)
                interrupted = number == signal.SIGINT
                exit_at_once(*((EXIT_INTERRUPTED, AT_ONCE) if interrupted else (EXIT_RESTART, NOTHING_YET)))
            if number == signal.SIGINT:
                print(AGAIN, file=sys.stderr, flush=True)
            if self._several and not self._asked.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
            self._asked.set()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handles Ctrl-C where the run may not end the process."""
        self._interrupts += 1
        if not self._began or self._interrupts > 1:
            raise KeyboardInterrupt
        print(AGAIN, file=sys.stderr, flush=True)
        self._asked.set()

    def after(self, step: int) -> bool:
        """Whether to stop after this step. Every process calls it once per step, and all get the same answer."""
        if not self._several:
            self._began = True
            return self._asked.is_set()
        if not self._began:
            if distributed_state().preemption_sync_manager is None:
                from_all('first step', '')
                start_preemption_service()
            self._began = True
        from jax.experimental import multihost_utils  # late, so that `exits_on_signals` takes effect at once

        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._main:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not self._ends_process:
            return
        signal.set_wakeup_fd(self._wakeup)
        self._writing.close()  # ends the thread
        self._thread.join()
        self._numbers.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Does nothing: the thread handles the signal. Python writes to the wake-up socket only with a handler set."""
