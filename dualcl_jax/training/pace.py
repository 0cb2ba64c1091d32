"""The speed of a run: images per second and the share of time spent waiting for input, excluding pauses."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pace:
    """Counts the steps of one process and their time. It does not count the first step, which compiles.

    Args:
      batch_size: images in a step, over all devices.
      clock: returns increasing seconds.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._batch_size = batch_size
        self._clock = clock
        self._steps = -1
        self._began = 0.0
        self._paused = 0.0
        self._waited_before = 0.0
        self._mark = (0, 0.0, 0.0)

    def step_done(self, wait_seconds: float) -> None:
        """Counts a finished step, given the seconds of waiting for input so far."""
        self._steps += 1
        if self._steps == 0:
            self._began, self._waited_before = self._clock(), wait_seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        began = self._clock()
        yield
        if self._steps >= 0:
            self._paused += self._clock() - began

    def _now(self, wait_seconds: float) -> tuple[int, float, float]:
        return self._steps, self._clock() - self._began - self._paused, wait_seconds - self._waited_before

    def recent(self, wait_seconds: float) -> dict[str, float]:
        """Rates since the last call."""
        before, self._mark = self._mark, self._now(wait_seconds)
        return self._rates(*(now - then for now, then in zip(self._mark, before, strict=True)))

    def overall(self, wait_seconds: float) -> dict[str, float]:
        """Rates since the first step."""
        return self._rates(*self._now(wait_seconds))

    def seconds_per_step(self) -> float | None:
        """The mean time of a step since the first one; None until the second is done."""
        steps, seconds, _ = self._now(0.0)
        return seconds / steps if steps > 0 else None

    def _rates(self, steps: float, seconds: float, waited: float) -> dict[str, float]:
        if steps <= 0 or seconds <= 0:
            return {}
        return {
            'time/images_per_second': steps * self._batch_size / seconds,
            'time/input_wait_fraction': waited / seconds,
        }
