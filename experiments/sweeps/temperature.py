"""Temperature × selection, with the dual view: both make hard negatives count more."""

from experiments.ablation.sweep import Sweep
from experiments.sweeps.shared.cifar10 import BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS, all_and_hardest


def get_sweep() -> Sweep:
    return Sweep(
        title='Temperature × selected negatives',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW),
        arms=all_and_hardest('tau', 'loss.temperature', (0.05, 0.1, 0.2, 0.4)),
        baseline='all-tau_0.1',
        seeds=FEW_SEEDS,
        budget=BUDGET,
        x_label='temperature τ',
    )
