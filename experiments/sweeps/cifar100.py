"""MoCo and the full method on CIFAR-100, with the best settings of `cifar100_settings.py`, four times as long."""

from experiments.ablation.sweep import Sweep
from experiments.sweeps.shared.cifar10 import MORE_SEEDS, long_arms
from experiments.sweeps.shared.cifar100 import BASE, CONFIG


def get_sweep() -> Sweep:
    return Sweep(
        title='MoCo and the full method on CIFAR-100, 800,000 passes',
        config=CONFIG,
        base=(*BASE, 'checkpoint.every_steps=2000'),
        arms=long_arms(epochs=4),
        baseline='moco',
        seeds=tuple(seed + 30 for seed in MORE_SEEDS),
        budget=800_000,
        measure='probe',
    )
