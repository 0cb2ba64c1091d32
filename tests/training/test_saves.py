"""The schedule of checkpoints by steps and by seconds, alike in all processes."""

from collections.abc import Callable

import pytest

from dualcl_jax.training.saves import LOOK_STEPS, SaveSchedule

TOTAL = 10_000


class Clock:
    """A clock that a test sets."""

    def __init__(self, offset: float = 0.0) -> None:
        self.now, self.offset = 0.0, offset

    def __call__(self) -> float:
        return self.now + self.offset


def schedule(clock: Clock, *, steps: int = 0, seconds: float = 0.0, start: int = 0, **more) -> SaveSchedule:
    options = {'busy': lambda: False, 'share': lambda name, text: text} | more
    return SaveSchedule(
        total_steps=TOTAL, start_step=start, every_steps=steps, every_seconds=seconds, clock=clock, **options
    )


def saved(schedule: SaveSchedule, clock: Clock, pace: Callable[[int], float], steps: range) -> list[int]:
    """The steps after which a schedule saves, where step i takes pace(i) seconds."""
    found = []
    for step in steps:
        clock.now += pace(step)
        found += [step] if schedule.after(step) else []
    return found


@pytest.mark.parametrize(('every', 'expected'), [(0, [TOTAL]), (4000, [4000, 8000, TOTAL]), (5000, [5000, TOTAL])])
def test_by_steps(every: int, expected: list[int]) -> None:
    """Without seconds, nothing is decided by a clock, and a save waits for the one before."""

    def refuse(*_: str) -> str:
        raise AssertionError('asked process 0')

    clock = Clock()
    by_steps = schedule(clock, steps=every, share=refuse, busy=lambda: True)
    assert saved(by_steps, clock, lambda step: 0.01, range(1, TOTAL + 1)) == expected


def test_by_seconds() -> None:
    """At 10 ms a step, 20 seconds are 2,000 steps; the last step is saved as well. The clock is read rarely."""
    asked = []

    def share(name: str, text: str) -> str:
        asked.append(name)
        return text

    clock = Clock()
    steps = saved(schedule(clock, seconds=20.0, share=share), clock, lambda step: 0.01, range(1, TOTAL + 1))
    assert steps == pytest.approx([2000, 4000, 6000, 8000, TOTAL], abs=10)
    assert len(asked) < 2 * TOTAL / LOOK_STEPS
    assert len(set(asked)) == len(asked)


def test_by_both() -> None:
    """A save by steps starts the seconds anew."""
    clock = Clock()
    both = schedule(clock, steps=1500, seconds=20.0)
    assert saved(both, clock, lambda step: 0.01, range(1, 5000)) == [1500, 3000, 4500]


def test_steps_become_slow() -> None:
    """A save is late by at most `LOOK_STEPS` steps, also where steps take longer than they did."""
    clock = Clock()
    steps = saved(schedule(clock, seconds=60.0), clock, lambda step: 0.01 if step < 500 else 1.0, range(1, 800))
    assert 500 < steps[0] <= 560 + LOOK_STEPS


def test_a_save_that_would_wait_is_put_off() -> None:
    """A save takes 35 s; one every 10 s is asked for, or one every 1,000 steps of 10 ms."""
    for options in ({'seconds': 10.0}, {'seconds': 1000.0, 'steps': 1000}):
        clock, ends = Clock(), [0.0]
        by_time = schedule(clock, busy=lambda clock=clock, ends=ends: clock.now < ends[0], **options)
        steps = []
        for step in range(1, TOTAL):
            clock.now += 0.01
            if by_time.after(step):
                assert clock.now >= ends[0]
                steps.append(step)
                ends[0] = clock.now + 35.0
        assert steps == pytest.approx([1000, 4500, 8000], abs=150)


def test_processes_decide_alike() -> None:
    """Process 1 has another clock and another opinion about the save before; process 0 decides."""
    told: dict[str, str] = {}

    def tell(name: str, text: str) -> str:
        assert name not in told
        told[name] = text
        return text

    clocks = Clock(), Clock(offset=1e6)
    first = schedule(clocks[0], steps=700, seconds=3.0, share=tell, start=100)
    second = schedule(
        clocks[1], steps=700, seconds=3.0, share=lambda name, text: told[name], start=100, busy=lambda: True
    )
    count = 0
    for step in range(101, 3000):
        for clock, pace in zip(clocks, (0.01, 0.5), strict=True):
            clock.now += pace
        saves = first.after(step)
        assert second.after(step) == saves
        count += saves
    assert count >= 9
