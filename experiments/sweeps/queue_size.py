"""Size K of the queue at a fixed k, at a fixed share k/K, and at a fixed age of its oldest keys, with the dual view.

A queue of K keys is replaced in K / 2B steps (both views enter). At a fixed age the batch grows with the queue, and the
learning rate with the batch: these arms take fewer steps for the same number of passes.
"""

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import BASE, BUDGET, CONFIG, DUAL_VIEW, FEW_SEEDS, hardest

SIZES = (1024, 2048, 4096, 8192, 16_384)
FIXED_K = 256


def arm(series: str, size: int, *fields: str) -> Arm:
    return Arm(f'{series}-{size}', (f'queue.size={size}', *fields), x=size, series=series.replace('_', ' '))


def get_sweep() -> Sweep:
    arms = [arm('fixed_k', size, 'negatives.selector=auto', f'negatives.k={FIXED_K}') for size in SIZES]
    arms += [arm('fixed_share', size, *hardest(0.25)) for size in SIZES]
    for size in SIZES[:-1]:
        if size != 4096:  # that arm is fixed_share-4096
            fields = f'train.batch_size={size // 64}', 'optimizer.reference_batch=64'
            arms.append(arm('fixed_age', size, *hardest(0.25), *fields))
    return Sweep(
        title='Queue size at fixed k, fixed share, and fixed age',
        config=CONFIG,
        base=(*BASE, *DUAL_VIEW),
        arms=tuple(arms),
        baseline='fixed_share-4096',
        seeds=FEW_SEEDS,
        budget=BUDGET,
        x_label='queue size K',
    )
