"""Batch, queue and learning rate of plain MoCo and of the full method on CIFAR-100, tuned equally.

It takes a quarter of the passes of `cifar100.py`, which adopts what is best for each on validation images, by the mean
of backbone and projection. A rate of 0.015 with small batches is left out: on CIFAR-10 (`small_batch.py`) it was one to
two points worse than 0.0075 for both.
"""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import METHODS, method_fields
from experiments.sweeps.shared.cifar100 import BASE, CONFIG

SETTINGS = (128, 4096, 0.03), (128, 4096, 0.06), (32, 1024, 0.0075)
"""Keys that enter the queue in a step, size of the queue, learning rate."""


def get_sweep() -> Sweep:
    return Sweep(
        title='Settings of MoCo and of the full method on CIFAR-100, 200,000 passes',
        config=CONFIG,
        base=BASE,
        arms=tuple(
            Arm(f'{method}-keys_{keys}-queue_{queue}-lr_{rate}', method_fields(method, keys, queue, rate))
            for keys, queue, rate in SETTINGS
            for method in METHODS
        ),
        baseline='moco-keys_128-queue_4096-lr_0.03',
        seeds=(100,),  # used by no sweep that compares methods
        budget=200_000,
    )
