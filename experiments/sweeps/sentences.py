"""Sentences: selected negatives × view orders × queue size, for a bag of words trained from scratch on WordNet.

Widths, learning rate and temperature are those that `configs/sentences.py` had before; they were chosen for the dual
view with the hardest quarter at 4,096 keys and not for the other arms. One-way arms take twice as many pairs per step:
steps, those of the warm-up, passes, and queries and keys per step are equal in all arms.
"""

from itertools import product

from experiments.ablation.sweep import Arm, Sweep
from experiments.sweeps.shared.cifar10 import ALL, FEW_SEEDS, hardest

SELECTION = {'all': ALL, 'hardest': hardest(0.25)}
VIEWS = {
    'one_way': ('loss.symmetric=False', 'train.batch_size=512', 'optimizer.warmup_epochs=0.4'),
    'dual_view': ('loss.symmetric=True', 'train.batch_size=256', 'optimizer.warmup_epochs=0.2'),
}
SIZE = 4096
OTHER_SIZES = (1024, 16_384)
LINES = {('one_way', 'all'): 'baseline', ('dual_view', 'hardest'): 'dual view, hardest'}
"""The arms that are compared at all sizes of the queue."""
BUDGET = 2 * 256 * 1100
"""Passes through the pair of encoders: 1,100 steps of 256 pairs in both view orders."""


def arm(views: str, selection: str, size: int) -> Arm:
    series = LINES.get((views, selection), '')
    return Arm(
        f'{views}-{selection}-queue_{size}',
        (*VIEWS[views], *SELECTION[selection], f'queue.size={size}'),
        x=size if series else None,
        series=series,
        levels=(views, selection) if size == SIZE else (),
    )


def get_sweep() -> Sweep:
    arms = [arm(views, selection, SIZE) for views, selection in product(VIEWS, SELECTION)]
    arms += [arm(views, selection, size) for views, selection in LINES for size in OTHER_SIZES]
    return Sweep(
        title='Sentences: selected negatives × view orders, and queue size',
        config='configs/sentences.py',
        base=(
            *('model.width=256', 'model.dim=256', 'optimizer.learning_rate=0.003', 'loss.temperature=0.05'),
            *('log.pictures=False', 'checkpoint.every_steps=500', 'checkpoint.keep=1'),
        ),
        arms=tuple(arms),
        baseline=f'one_way-all-queue_{SIZE}',
        seeds=FEW_SEEDS,
        budget=BUDGET,
        x_label='queue size K',
        measure='sts',
    )
