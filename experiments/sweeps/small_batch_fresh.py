"""MoCo and the dual view with the hardest quarter, with the settings that `small_batch.py` chose, on fresh seeds."""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps import small_batch
from experiments.sweeps.shared.cifar10 import MORE_SEEDS


def get_sweep() -> Sweep:
    sweep = small_batch.get_sweep()
    fields = {arm.name: arm.fields for arm in sweep.arms}
    return Sweep(
        title='MoCo and the dual view with the hardest quarter, small batches, fresh seeds',
        config=sweep.config,
        base=sweep.base,
        arms=(
            Arm('moco', fields['moco-keys_16-queue_1024-lr_0.0075']),
            Arm('full', fields['full-keys_32-queue_1024-lr_0.0075']),
        ),
        baseline='moco',
        seeds=tuple(seed + 20 for seed in MORE_SEEDS),
        budget=sweep.budget,
    )
