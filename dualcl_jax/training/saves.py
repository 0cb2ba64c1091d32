"""When a run saves checkpoints: after a number of steps, after a number of seconds, and after its last step."""

import time
from collections.abc import Callable

from dualcl_jax.system.processes.agreement import from_process_0

LOOK_STEPS = 100
"""The clock is read at least once in this many steps."""
RETRY_S = 1.0
"""How soon the clock is read again after a save was postponed."""


class SaveSchedule:
    """Decides after each step whether a checkpoint is saved. All processes of a run take the same decision.

    With `every_seconds`, process 0 reads its clock and sends its decision to the others. It does so rarely: after half
    of the steps that fit into the remaining time, and after `LOOK_STEPS` at the latest. Each decision also contains the
    step of the next one, so that no process asks in between. A save that would have to wait for the previous one is
    postponed, whichever of the two periods it is due to. Without `every_seconds`, saves depend on the step alone, and
    wait for the previous one.

    Args:
      total_steps: the length of the run; the last step is always saved.
      start_step: how many steps were taken before.
      every_steps: the period in steps; 0 for none.
      every_seconds: the period in seconds; 0 for none.
      busy: returns whether the previous save is still in progress.
      clock: returns increasing seconds.
      share: gives every process the text of process 0 for a name.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int,
        every_steps: int,
        every_seconds: float,
        busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        share: Callable[[str, str], str] = from_process_0,
    ) -> None:
        self._total, self._every_steps, self._every_seconds = total_steps, every_steps, every_seconds
        self._busy, self._clock, self._share = busy, clock, share
        self._owed, self._next = False, start_step + 1
        self._saved_at = clock()
        self._looked = start_step, self._saved_at

    def after(self, step: int) -> bool:
        """Whether to save after this step. Every process calls it once per step."""
        by_steps = bool(self._every_steps) and step % self._every_steps == 0
        if step == self._total or not self._every_seconds:
            return by_steps or step == self._total
        if by_steps:
            self._owed, self._next = True, step
        if step < self._next:
            return False
        saves, following = map(int, self._share(f'saves/{step}', self._decide(step)).split())
        self._next = following
        if saves:
            self._owed, self._saved_at = False, self._clock()
        return bool(saves)

    def _decide(self, step: int) -> str:
        """The decision of this process: whether to save, 0 or 1, and the step after which to decide again."""
        now = self._clock()
        left = self._saved_at + self._every_seconds - now
        due = self._owed or left <= 0
        saves = due and not self._busy()
        if due:
            left = self._every_seconds if saves else RETRY_S
        before, then = self._looked
        self._looked = step, now
        pace = (now - then) / (step - before) if step > before else 0.0
        steps = min(left / (2 * pace), LOOK_STEPS) if pace > 0 else 1
        return f'{int(saves)} {step + max(1, int(steps))}'
