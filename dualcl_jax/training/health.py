"""Warns about runs that learn nothing, and counts batches whose loss, gradient or next state is not finite."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax

from dualcl_jax.data.order import batch_indices
from dualcl_jax.system.devices import to_host
from dualcl_jax.system.errors import UserError, listed
from dualcl_jax.training.run import Run
from dualcl_jax.workdir.metrics import MetricsLog

PATIENCE = 5
"""How many consecutive records must show a fault before it causes a warning."""
NEAR_CHANCE = 0.98
NEAR_NOTHING = 0.01
COLLAPSED_STD = 0.05


def warning(records: Sequence[dict[str, Any]], total_steps: int) -> str | None:
    """Returns a warning once a fault has lasted for `PATIENCE` records of a run, and None for later records.

    The faults are a loss above `NEAR_CHANCE` of its chance level after a tenth of the run, a loss below `NEAR_NOTHING`
    of it in the first half, queries whose `train/feature_std` is below `COLLAPSED_STD`, and no negatives although the
    queue is full.
    """
    trained = (record for record in reversed(records) if 'train/loss' in record)
    recent = list(itertools.islice(trained, PATIENCE + 1))[::-1]
    faults = {
        'the loss stays at its chance level: try another learning rate, a longer warm-up or a larger temperature': (
            lambda r: r['step'] > 0.1 * total_steps and r['train/loss'] > NEAR_CHANCE * r['train/loss_chance'] > 0
        ),
        'the loss is near zero, so there is little left to learn: use views that differ more, or more negatives': (
            lambda r: r['step'] <= 0.5 * total_steps and r['train/loss'] < NEAR_NOTHING * r['train/loss_chance']
        ),
        'the queries have collapsed to one direction: try a lower learning rate or a higher ema.momentum': (
            lambda r: r['train/feature_std'] < COLLAPSED_STD
        ),
        'the anchors have no negatives: lower negatives.skip, or use a larger queue or batch': (
            lambda r: r['train/loss_chance'] == 0 and r.get('queue/fill') == 1
        ),
    }
    for message, shows in faults.items():
        seen = [shows(record) for record in recent]
        if len(seen) >= PATIENCE and all(seen[-PATIENCE:]) and not (len(seen) > PATIENCE and seen[0]):
            return f'{message} (step {recent[-1]["step"]})'
    return None


NAMED = 8
"""How many examples of a batch the terminal names; `metrics.jsonl` has all of them."""


class Skipped:
    """Counts the batches that a run has skipped.

    Args:
      run: the run; its `skip_nonfinite` is the number of batches that it may skip.
      log: receives a record of each skipped batch.

    Attributes:
      steps: the steps of the skipped batches.
    """

    def __init__(self, run: Run, log: MetricsLog) -> None:
        self.steps = list(run.past.skipped_steps)
        self._plan, self._log = run.plan, log

    def add(self, step: int, metrics: dict[str, jax.Array], wall_time_s: float) -> str:
        """Records a skipped batch and returns a line about it.

        Raises:
          UserError: the run has skipped more batches than it may.
        """
        config, allowed = self._plan.config, self._plan.config.skip_nonfinite
        ids = batch_indices(config.seed, step - 1, len(self._plan.splits.train), config.train.batch_size).tolist()
        self.steps.append(step)
        self._log.write(step, wall_time_s, {'train/skipped_batches': len(self.steps)}, skipped_ids=ids)
        values = {name: float(to_host(metrics[name]).squeeze()) for name in ('train/loss', 'train/gradient_norm')}
        broken = [f'{name} is {value}' for name, value in values.items() if not math.isfinite(value)]
        named = listed(map(str, ids[:NAMED]), len(ids))
        what = f'{broken[0] if broken else "the next state is not finite"} at step {step} (examples {named})'
        if len(self.steps) <= allowed:
            return f'{what}: skipped, {len(self.steps)} of --skip_nonfinite={allowed}'
        raise UserError(
            f'{what}: lower optimizer.learning_rate or raise loss.temperature\n'
            f'or skip such batches with --skip_nonfinite={max(2 * allowed, 1)}; '
            f'checkpoints of earlier steps are in {self._plan.folder / "checkpoints"}'
        )
