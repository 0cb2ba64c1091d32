"""A profiler trace of a few steps, for TensorBoard, XProf or Perfetto."""

from types import TracebackType

import jax

WARM_UP = 3
"""Steps of a start that come before those that are traced: the first ones allocate."""


class Trace:
    """Within its context, writes a trace of some steps.

    Args:
      folder: where to, local or remote.
      start_step: how many steps were taken before this start.
      steps: how many to trace, after `WARM_UP`; 0 for none.
    """

    def __init__(self, folder: str, start_step: int, steps: int) -> None:
        self._folder = folder
        self._first = start_step + WARM_UP + 1
        self._last = self._first + steps - 1
        self._running = False

    def __enter__(self) -> 'Trace':
        return self

    def before(self, step: int) -> None:
        """Call before each step, numbered from 1."""
        if step == self._first <= self._last:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Call when a step is under way, with what it will measure."""
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            self._stop()
