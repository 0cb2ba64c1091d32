"""A profiler trace of a few steps, for TensorBoard, XProf or Perfetto."""

from types import TracebackType

import jax

WARM_UP = 3
"""How many steps after the start are not traced: the first ones allocate memory."""


class Trace:
    """A context that writes a trace of some steps.

    Args:
      folder: the output folder, local or remote.
      start_step: the number of steps taken before this start.
      steps: how many steps to trace after `WARM_UP`; 0 for none.
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
        """Call after each step has been dispatched, with its metrics."""
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
