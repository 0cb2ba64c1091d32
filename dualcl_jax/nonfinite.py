"""Batches whose loss, gradient or next state is not finite: the step passes over them, the run stops or goes on."""

import math

import jax

from dualcl_jax.data.order import batch_indices
from dualcl_jax.errors import UserError
from dualcl_jax.metrics import MetricsLog
from dualcl_jax.parallel import to_host
from dualcl_jax.run import Run

NAMED = 8
"""So many examples of a batch are named on the terminal; `metrics.jsonl` has all."""


class Skipped:
    """The batches that a run has passed over.

    Args:
      run: of which `skip_nonfinite` says how many batches may be passed over.
      log: gets a record of each.

    Attributes:
      steps: whose batches they were.
    """

    def __init__(self, run: Run, log: MetricsLog) -> None:
        self.steps = list(run.skipped_steps)
        self._run, self._log = run, log

    def add(self, step: int, metrics: dict[str, jax.Array], wall_time_s: float) -> str:
        """Records a batch, and returns a line about it.

        Raises:
          UserError: it is one more than may be passed over.
        """
        run, allowed = self._run, self._run.config.skip_nonfinite
        ids = batch_indices(run.config.seed, step - 1, len(run.splits.train), run.config.train.batch_size).tolist()
        self.steps.append(step)
        self._log.write(step, wall_time_s, {'train/skipped_batches': len(self.steps)}, skipped_ids=ids)
        values = {name: float(to_host(metrics[name]).squeeze()) for name in ('train/loss', 'train/gradient_norm')}
        broken = [f'{name} is {value}' for name, value in values.items() if not math.isfinite(value)]
        named = ', '.join(map(str, ids[:NAMED])) + (f' and {len(ids) - NAMED:,} more' if len(ids) > NAMED else '')
        what = f'{broken[0] if broken else "the next state is not finite"} at step {step} (examples {named})'
        if len(self.steps) <= allowed:
            return f'{what}: passed over, {len(self.steps)} of --skip_nonfinite={allowed}'
        raise UserError(
            f'{what}: lower optimizer.learning_rate or raise loss.temperature\n'
            f'or pass over such batches with --skip_nonfinite={max(2 * allowed, 1)}; '
            f'checkpoints of earlier steps are in {run.folder / "checkpoints"}'
        )
