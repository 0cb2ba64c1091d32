"""Settings shared by the sweeps: small runs on CIFAR-10, based on MoCo's own recipe for it.

ResNet-18 of width 16 on 16×16 views, batch 128, 20,000 images for training and 5,000 for validation: a run takes
minutes on one core. The departures from the recipe (head, weaker crops, batch and learning rate) made plain MoCo better
at this budget (`experiments/README.md`).
"""

from experiments.ablation.sweep import Arm

CONFIG = 'configs/cifar10_moco.py'
BUDGET = 80_000
"""Passes through the pair of encoders: four one-way epochs or two epochs of both view orders, in 625 steps."""
UNTUNED = (
    'data.limit=25000',
    'data.validation_fraction=0.2',
    'data.hold_out=random',  # as in the stored results
    'data.image_size=16',
    'views.crop_scale=(0.4,1.0)',
    'model.width=16',
    'model.projection=mlp',
    'train.batch_size=128',
    # Equal in every arm, so that they contribute to no difference.
    'negatives.mask_same_image=True',
    'queue.init=empty',
    'monitor.every_epochs=1',
    'monitor.bank=10000',
    'log.pictures=False',
    'checkpoint.every_steps=200',
    'checkpoint.keep=1',
)
BASE = *UNTUNED, 'optimizer.learning_rate=0.03'
LARGE = 'data.limit=0', 'data.validation_fraction=0.1', 'data.image_size=24', 'monitor.bank=0', 'model.dtype=bfloat16'
"""Changes of `UNTUNED` for long runs: 24×24 views of 45,000 images, in bfloat16."""
DUAL_VIEW = 'loss.symmetric=True', 'train.batch_size=64'
"""Half as many images, with both views as queries: steps, passes and keys per step equal those of one-way arms."""
KEY_TERM = 'loss.key_term=batch', 'loss.key_weight=0.5'
ALL = ('negatives.selector=all',)
FEW_SEEDS, MORE_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)


def hardest(share: float) -> tuple[str, ...]:
    """Selects exactly the hardest share of the queue."""
    return 'negatives.selector=auto', f'negatives.fraction={share}'


def all_and_hardest(short: str, field: str, values: tuple[float, ...]) -> tuple[Arm, ...]:
    """Arms with the whole queue and with its hardest quarter at each value of a field, named by its `short` name."""
    return tuple(
        Arm(f'{name}-{short}_{value}', (*fields, f'{field}={value}'), x=value, series=name)
        for name, fields in (('all', ALL), ('hardest', hardest(0.25)))
        for value in values
    )


METHODS = {
    'moco': (1, ALL),
    'full': (2, ('loss.symmetric=True', *hardest(0.25), *KEY_TERM)),
}
"""The view orders of a method, and its fields: plain MoCo, and the dual view with the hardest quarter and key term."""


def method_fields(method: str, keys: int, queue: int, rate: float) -> tuple[str, ...]:
    """Fields of a method that puts `keys` keys into the queue in each step."""
    orders, own = METHODS[method]
    return *own, *key_fields(keys, queue, rate, orders)


def key_fields(keys: int, queue: int, rate: float, orders: int) -> tuple[str, ...]:
    """Fields by which a method with this many view orders puts `keys` keys into the queue in each step."""
    return f'train.batch_size={keys // orders}', f'queue.size={queue}', f'optimizer.learning_rate={rate}'


SETTINGS = 32, 1024, 0.0075
"""Keys that enter the queue in a step, size of the queue, learning rate: best for both methods in short runs."""


def long_arms(epochs: int) -> tuple[Arm, ...]:
    """Arms of both methods with small batches, measured every `epochs` one-way epochs.

    Both view orders take as many passes in half as many epochs.
    """
    return tuple(
        Arm(method, (*method_fields(method, *SETTINGS), f'monitor.every_epochs={epochs // orders}'))
        for method, (orders, _) in METHODS.items()
    )
