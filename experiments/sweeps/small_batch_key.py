"""The full method with a larger key weight, from the batch sizes of the other sweeps down to small ones; one seed."""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import BUDGET, CONFIG, DUAL_VIEW, UNTUNED, hardest

WEIGHTS = 0.75, 1.0
SETTINGS = (64, 4096, 0.03), (64, 4096, 0.06), (32, 1024, 0.015), (16, 1024, 0.0075)
"""Batch size, queue size, learning rate."""


def get_sweep() -> Sweep:
    arms = tuple(
        Arm(
            f'w_{weight}-batch_{batch}-lr_{rate}',
            (
                f'loss.key_weight={weight}',
                f'train.batch_size={batch}',
                f'queue.size={size}',
                f'optimizer.learning_rate={rate}',
            ),
        )
        for batch, size, rate in SETTINGS
        for weight in WEIGHTS
    )
    return Sweep(
        title='The key term and the size of the batch',
        config=CONFIG,
        base=(*UNTUNED, *DUAL_VIEW, *hardest(0.25), 'loss.key_term=batch'),
        arms=arms,
        baseline=arms[0].name,
        seeds=(100,),  # used only by the sweeps that tune
        budget=BUDGET,
    )
