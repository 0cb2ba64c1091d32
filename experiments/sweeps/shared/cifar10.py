"""What the sweeps have in common: small runs on CIFAR-10, from MoCo's own recipe for it.

ResNet-18 of width 16 on 16×16 views, batch 128, 20,000 images to train on and 5,000 to choose by: minutes a run on one
core. What departs from the recipe (the head, weaker crops, batch and learning rate) made plain MoCo better at this
budget (`experiments/README.md`).
"""

CONFIG = 'configs/cifar10_moco.py'
BUDGET = 80_000
"""Passes through the pair of encoders: four epochs of one-way training, two of both view orders, in 625 steps."""
UNTUNED = (
    'data.limit=25000',
    'data.validation_fraction=0.2',
    'data.image_size=16',
    'views.crop_scale=(0.4,1.0)',
    'model.width=16',
    'model.projection=mlp',
    'train.batch_size=128',
    # In every arm alike, so that these are no part of a difference.
    'negatives.mask_same_image=True',
    'queue.init=empty',
    'monitor.every_epochs=1',
    'monitor.bank=10000',
    'log.pictures=False',
    'checkpoint.every_steps=200',
    'checkpoint.keep=1',
)
BASE = *UNTUNED, 'optimizer.learning_rate=0.03'
DUAL_VIEW = 'loss.symmetric=True', 'train.batch_size=64'
"""Of half as many images, whose both views are queries: steps, passes and keys a step are those of one-way arms."""
KEY_TERM = 'loss.key_term=batch', 'loss.key_weight=0.5'
ALL = ('negatives.selector=all',)
FEW_SEEDS, MORE_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)


def hardest(share: float) -> tuple[str, ...]:
    """The hardest share of the queue, exactly."""
    return 'negatives.selector=auto', f'negatives.fraction={share}'
