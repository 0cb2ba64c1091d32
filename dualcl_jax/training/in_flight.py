"""The steps in flight on the devices, and the handling of their metrics."""

import collections

import jax

from dualcl_jax.data import Loader
from dualcl_jax.system.console import Console, duration
from dualcl_jax.system.devices import to_host
from dualcl_jax.training import summary
from dualcl_jax.training.health import Skipped, warning
from dualcl_jax.training.pace import Pace
from dualcl_jax.training.run import Run
from dualcl_jax.workdir.metrics import SCORES, MetricsLog

Metrics = dict[str, jax.Array]


class InFlight:
    """Waits for steps in the order in which they were started, and records their metrics.

    The metrics of the first, the last and every `log.every_steps`-th step are written and shown. A step that was
    skipped, because its loss, gradient or next state was not finite, is always recorded.

    Args:
      run: the run that takes the steps.
      log: receives the records.
      console: shows progress and warnings.
      loader: loads the batches; the rates include the share of time spent waiting for it.

    Attributes:
      pace: the pace of the finished steps.
      skipped: the steps that were skipped.
      settled: the last finished step; if there is none, the step that the run resumed from.
    """

    def __init__(self, run: Run, log: MetricsLog, console: Console, loader: Loader) -> None:
        self.pace = Pace(run.plan.config.train.batch_size)
        self.skipped = Skipped(run, log)
        self.settled = run.plan.start_step
        self._run, self._log, self._console, self._loader = run, log, console, loader
        self._steps: collections.deque[tuple[int, Metrics]] = collections.deque()

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds a step that was just started."""
        self._steps.append((step, metrics))

    def settle(self, most: int) -> None:
        """Waits until at most `most` steps are in flight.

        Raises:
          UserError: a step was skipped, one more than `skip_nonfinite` allows.
        """
        while len(self._steps) > most:
            self._settle_oldest()

    def rates(self) -> dict[str, float]:
        """Images per second and the share of time spent waiting for input, since the first step."""
        return self.pace.overall(self._loader.wait_seconds)

    def _settle_oldest(self) -> None:
        step, metrics = self._steps.popleft()
        finite = bool(to_host(metrics.pop('train/finite')).all())
        self.settled = step
        self.pace.step_done(self._loader.wait_seconds)
        if not finite:
            self._console.warn(self.skipped.add(step, metrics, self._run.wall_time_s()))
        elif step in (1, self._run.plan.total_steps) or step % self._run.plan.config.log.every_steps == 0:
            self._record(step, metrics)
        self._console.warn(self._log.problem())

    def _record(self, step: int, metrics: Metrics) -> None:
        """Writes the metrics of a step, and shows them."""
        plan = self._run.plan
        values = {name: float(value.squeeze()) for name, value in to_host(metrics).items()}
        values |= {'train/epoch': step / plan.steps_per_epoch} | self.pace.recent(self._loader.wait_seconds)
        values['time/save_wait_seconds'] = self._run.checkpoints.waited_s
        record = self._log.write(step, self._run.wall_time_s(), values)
        text = summary.status(record, plan.splits.train.kind, *(self._log.last(score) for score in SCORES))
        seconds = self.pace.seconds_per_step()
        if seconds is not None and step < plan.first_look:
            text += f'  first look in {duration(seconds * (plan.first_look - step))}'
        self._console.status(step, text, seconds)
        self._console.warn(warning(self._log.records, plan.total_steps))
