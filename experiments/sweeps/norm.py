"""Batch statistics, which can leak the positive: of the whole batch, of groups, and with keys in other groups.

On one device `local` and `sync` are the same: statistics of the whole batch.
"""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS, hardest


def get_sweep() -> Sweep:
    groups = (2, 8, 32)
    arms = [Arm('sync', ('model.norm=sync',))]
    arms += [Arm(f'split_{count}', (f'model.norm=split:{count}',)) for count in groups]
    arms += [
        Arm(f'split_{count}-shuffled', (f'model.norm=split:{count}', 'loss.shuffle_keys=True')) for count in groups
    ]
    return Sweep(
        title='Batch statistics and shuffled keys',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW, *hardest(0.25)),
        arms=tuple(arms),
        baseline='sync',
        seeds=FEW_SEEDS,
        budget=BUDGET,
    )
