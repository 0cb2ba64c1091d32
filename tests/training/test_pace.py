"""Rates by a clock that the tests control."""

import pytest

from dualcl_jax.training.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_compiling_and_pauses_do_not_count() -> None:
    clock = Clock()
    pace = Pace(batch_size=32, clock=clock)
    with pace.paused():  # before the first step
        clock.now += 5
    clock.now += 60  # compiling
    assert pace.recent(0.5) == pace.overall(0.5) == {}
    pace.step_done(0.5)
    assert pace.overall(0.5) == {}
    assert pace.seconds_per_step() is None
    clock.now += 2
    pace.step_done(0.6)
    with pace.paused():
        clock.now += 100
    clock.now += 2
    pace.step_done(1.0)
    assert pace.seconds_per_step() == pytest.approx(2)
    assert pace.overall(1.5) == {
        'time/images_per_second': pytest.approx(2 * 32 / 4),
        'time/input_wait_fraction': pytest.approx(1.0 / 4),
    }


def test_recent_begins_at_the_last_call() -> None:
    clock = Clock()
    pace = Pace(batch_size=10, clock=clock)
    pace.step_done(0.0)
    for _ in range(4):
        clock.now += 1
        pace.step_done(0.0)
    assert pace.recent(0.0)['time/images_per_second'] == pytest.approx(10)
    assert pace.recent(0.0) == {}
    clock.now += 4
    pace.step_done(3.0)
    assert pace.recent(3.0) == {
        'time/images_per_second': pytest.approx(10 / 4),
        'time/input_wait_fraction': pytest.approx(3 / 4),
    }
    assert pace.overall(3.0)['time/images_per_second'] == pytest.approx(5 * 10 / 8)
