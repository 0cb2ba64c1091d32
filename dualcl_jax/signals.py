"""Stopping on SIGTERM and Ctrl-C after the step under way, so that a run can save itself first."""

import signal
from types import FrameType, TracebackType

from jax.experimental import multihost_utils


class StopSignal:
    """A context in which the first SIGTERM or SIGINT asks for a stop, and the second acts as it always did.

    Several processes must stop after the same step, or those that go on wait forever for the others. There JAX's
    preemption service, which has listened to SIGTERM since the processes joined, agrees on the step; Ctrl-C is passed
    on to it, and a second signal changes nothing.

    Args:
      several_processes: whether this is one of the processes of a run.
    """

    def __init__(self, *, several_processes: bool) -> None:
        self._several = several_processes
        self._received = False

    def __enter__(self) -> 'StopSignal':
        handled = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._stop) for number in handled}
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._several:
            signal.raise_signal(signal.SIGTERM)
            return
        self._received = True
        signal.signal(number, self._before[signal.Signals(number)])

    def after(self, step: int) -> bool:
        """Whether to stop after this step. Every process asks once a step, and all get the same answer."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._received

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
