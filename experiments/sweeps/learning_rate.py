"""Learning rate and batch of plain MoCo and of the dual view with the hardest quarter, tuned equally.

At an equal number of passes the dual view takes half as many steps; with half the batch size it takes as many. The
findings went into `shared/cifar10.py`, and `small_batch.py` continues from here.
"""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import ALL, BUDGET, CONFIG, UNTUNED, hardest

FULL = 'loss.symmetric=True', *hardest(0.25)


def batch(size: int) -> tuple[str, ...]:
    return (f'train.batch_size={size}',)


ARMS = {
    ('moco', ALL): (0.015, 0.03, 0.06, 0.12),
    ('full', FULL): (0.015, 0.03, 0.06, 0.12),
    ('moco-batch_64', ALL + batch(64)): (0.03, 0.06),
    ('full-batch_64', FULL + batch(64)): (0.03, 0.06),
}


def get_sweep() -> Sweep:
    return Sweep(
        title='Learning rate and batch of MoCo and of the dual view with the hardest quarter',
        config=CONFIG,
        base=UNTUNED,
        arms=tuple(
            Arm(f'{name}-lr_{rate}', (*fields, f'optimizer.learning_rate={rate}'), x=rate, series=name)
            for (name, fields), rates in ARMS.items()
            for rate in rates
        ),
        baseline='moco-lr_0.03',
        seeds=(100,),  # used by no other sweep
        budget=BUDGET,
        x_label='learning rate',
    )
