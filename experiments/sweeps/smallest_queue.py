"""Accuracy over the size of the queue, of MoCo and of the full method: which one needs less memory?

Both have the small batches that are best for both (`small_batch.py`): 32 keys enter the queue per step, so a queue of
256 keys is replaced in 8 steps, and one of 16,384 in 512.
"""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import BUDGET, CONFIG, FEW_SEEDS, METHODS, SETTINGS, UNTUNED, method_fields

KEYS, _, RATE = SETTINGS
SIZES = (256, 1024, 4096, 16_384)


def get_sweep() -> Sweep:
    return Sweep(
        title='Queue size of MoCo and of the full method',
        config=CONFIG,
        base=UNTUNED,
        arms=tuple(
            Arm(f'{method}-{size}', method_fields(method, KEYS, size, RATE), x=size, series=method)
            for method in METHODS
            for size in SIZES
        ),
        baseline='moco-4096',
        seeds=FEW_SEEDS,
        budget=BUDGET,
        x_label='queue size K',
    )
