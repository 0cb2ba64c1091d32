"""The learning rate of plain MoCo and of the full method, each tuned alike before they are compared.

What it finds goes into the other sweeps as --config.optimizer.learning_rate, or into the fields of their arms.
"""

from experiments.ablation_sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import ALL, BASE, BUDGET, CONFIG, DUAL_VIEW, hardest


def get_sweep() -> Sweep:
    return Sweep(
        title='Learning rate of MoCo and of the full method',
        config=CONFIG,
        base=BASE,
        arms=tuple(
            Arm(f'{name}-lr_{rate}', (*fields, f'optimizer.learning_rate={rate}'), x=rate, series=name)
            for name, fields in (('moco', ALL), ('full', DUAL_VIEW + hardest(0.25)))
            for rate in (0.015, 0.03, 0.06, 0.12)
        ),
        baseline='moco-lr_0.06',
        seeds=(100,),  # of no other sweep
        budget=BUDGET,
        x_label='learning rate',
    )
