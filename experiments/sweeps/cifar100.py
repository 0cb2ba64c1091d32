"""MoCo and the full method on CIFAR-100, with the best settings of `cifar100_settings.py`, four times as long."""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import METHODS, MORE_SEEDS, method_fields
from experiments.sweeps.shared.cifar100 import BASE, CONFIG

SETTINGS = 32, 1024, 0.0075
"""Keys that enter the queue in a step, size of the queue, learning rate: best for both methods."""
MEASURED_EPOCHS = 4
"""One-way epochs between two points of the curves; both view orders take as many passes in half as many epochs."""


def get_sweep() -> Sweep:
    return Sweep(
        title='MoCo and the full method on CIFAR-100, 800,000 passes',
        config=CONFIG,
        base=(*BASE, 'checkpoint.every_steps=2000'),
        arms=tuple(
            Arm(method, (*method_fields(method, *SETTINGS), f'monitor.every_epochs={MEASURED_EPOCHS // orders}'))
            for method, (orders, _) in METHODS.items()
        ),
        baseline='moco',
        seeds=tuple(seed + 30 for seed in MORE_SEEDS),
        budget=800_000,
        measure='probe',
    )
