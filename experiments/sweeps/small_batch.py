"""Plain MoCo and the dual view with the hardest quarter: small batches and queues of young keys, tuned equally.

Per step, MoCo puts 16 or 32 keys into the queue; so does the dual view, with both views of 8 or 16 images.
"""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.learning_rate import FULL
from experiments.sweeps.shared.cifar10 import ALL, BUDGET, CONFIG, UNTUNED

METHODS = {'moco': (1, ALL), 'full': (2, FULL)}
SETTINGS = {  # keys that enter per step, queue size: learning rates
    (32, 4096): (0.0075, 0.015),
    (32, 1024): (0.0075, 0.015),
    (16, 1024): (0.00375, 0.0075),
}


def get_sweep() -> Sweep:
    return Sweep(
        title='MoCo and the dual view with the hardest quarter, small batches',
        config=CONFIG,
        base=UNTUNED,
        arms=tuple(
            Arm(
                f'{method}-keys_{keys}-queue_{size}-lr_{rate}',
                (
                    *fields,
                    f'train.batch_size={keys // orders}',
                    f'queue.size={size}',
                    f'optimizer.learning_rate={rate}',
                ),
            )
            for method, (orders, fields) in METHODS.items()
            for (keys, size), rates in SETTINGS.items()
            for rate in rates
        ),
        baseline='moco-keys_32-queue_4096-lr_0.015',
        seeds=(100,),  # used by no other sweep than `learning_rate.py`
        budget=BUDGET,
    )
