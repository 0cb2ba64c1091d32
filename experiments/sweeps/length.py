"""Does the difference between MoCo and the full method grow or shrink with the length of training?

CIFAR-10 with the small batches that are best for both (`small_batch.py`), for 2 million passes; `--budget=200000` and
`--budget=800000` are the shorter lengths, each with a learning rate that decays over its own length.
"""

from experiments.ablation.sweep import Sweep
from experiments.sweeps.shared.cifar10 import CONFIG, FEW_SEEDS, LARGE, UNTUNED, long_arms


def get_sweep() -> Sweep:
    return Sweep(
        title='MoCo and the full method, up to 2 million passes',
        config=CONFIG,
        base=(*UNTUNED, *LARGE, 'checkpoint.every_steps=2000'),
        arms=long_arms(epochs=4),
        baseline='moco',
        seeds=tuple(seed + 40 for seed in FEW_SEEDS),
        budget=2_000_000,
        measure='probe',
    )
