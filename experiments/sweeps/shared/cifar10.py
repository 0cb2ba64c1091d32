"""What the sweeps have in common: small runs on CIFAR-10, from MoCo's own recipe for it.

ResNet-18 of width 16, batch 256, 20,000 images to train on and 5,000 to choose by, a budget of ten one-way epochs.
"""

CONFIG = 'configs/cifar10_moco.py'
BUDGET = 10 * 20_000
"""Passes through the pair of encoders: ten epochs of one-way training, five of both view orders."""
BASE = (
    'data.limit=25000',
    'data.validation_fraction=0.2',
    'model.width=16',
    'train.batch_size=256',
    # In every arm alike, so that these are no part of a difference.
    'negatives.mask_same_image=True',
    'queue.init=empty',
    'monitor.every_epochs=2',
    'checkpoint.every_steps=100',
    'checkpoint.keep=1',
)
DUAL_VIEW = ('loss.symmetric=True',)
ALL = ('negatives.selector=all',)
FEW_SEEDS, MORE_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)


def hardest(share: float) -> tuple[str, ...]:
    """The hardest share of the queue, exactly."""
    return 'negatives.selector=auto', f'negatives.fraction={share}'
