"""Stopping on SIGTERM and Ctrl-C after the step under way, so that a run can save itself first."""

import signal
from types import FrameType, TracebackType


class StopSignal:
    """A context in which the first SIGTERM or SIGINT sets `received`, and the second acts as it always did."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> 'StopSignal':
        self._before = {number: signal.signal(number, self._stop) for number in self._SIGNALS}
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = True
        signal.signal(number, self._before[signal.Signals(number)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
