"""How many of the queue's 4,096 keys enter the loss: the hardest 1/64 to all of them, with the dual view."""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import ALL, BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS, hardest


def get_sweep() -> Sweep:
    parts = (64, 32, 16, 8, 4, 2)
    return Sweep(
        title='Share k/K of the queue that enters the loss',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW),
        arms=(*(Arm(f'share_1-{part}', hardest(1 / part), x=1 / part) for part in parts), Arm('all', ALL, x=1.0)),
        baseline='all',
        seeds=FEW_SEEDS,
        budget=BUDGET,
        x_label='share k/K',
    )
