"""Warnings for runs that learn nothing."""

import itertools
from collections.abc import Sequence
from typing import Any

PATIENCE = 5
"""Records in a row that must show a fault before it is told."""
NEAR_CHANCE = 0.98
COLLAPSED_STD = 0.05


def warning(records: Sequence[dict[str, Any]], total_steps: int) -> str | None:
    """What the newest record of a run calls for, told once: when the fault has lasted for `PATIENCE` records.

    A loss above `NEAR_CHANCE` of its chance level after a tenth of the run, or queries whose `train/feature_std` is
    below `COLLAPSED_STD`.
    """
    trained = (record for record in reversed(records) if 'train/loss' in record)
    recent = list(itertools.islice(trained, PATIENCE + 1))[::-1]
    faults = {
        'the loss stays at its chance level: try another learning rate, a longer warm-up or a larger temperature': (
            lambda r: r['step'] > 0.1 * total_steps and r['train/loss'] > NEAR_CHANCE * r['train/loss_chance'] > 0
        ),
        'the queries have collapsed to one direction: try a lower learning rate or a higher ema.momentum': (
            lambda r: r['train/feature_std'] < COLLAPSED_STD
        ),
    }
    for message, shows in faults.items():
        seen = [shows(record) for record in recent]
        if len(seen) >= PATIENCE and all(seen[-PATIENCE:]) and not (len(seen) > PATIENCE and seen[0]):
            return f'{message} (step {recent[-1]["step"]})'
    return None
