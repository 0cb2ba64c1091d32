"""Selected negatives among keys of an encoder that moves fast: low momentum, with the dual view.

With a momentum of 0.99 the keys of a queue come from nearly the same encoder; at 0.5 those of 32 steps ago come from
another one. The arms with 0.99 are those of `temperature.py` with τ 0.1.
"""

from experiments.ablation.sweep import Sweep
from experiments.sweeps.shared.cifar10 import BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS, all_and_hardest


def get_sweep() -> Sweep:
    return Sweep(
        title='Selected negatives × momentum of the key encoder',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW),
        arms=all_and_hardest('m', 'ema.momentum', (0.0, 0.5, 0.9, 0.99)),
        baseline='all-m_0.99',
        seeds=FEW_SEEDS,
        budget=BUDGET,
        x_label='momentum m of the key encoder',
    )
