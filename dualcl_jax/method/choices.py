"""Chooses the fields that a config of images leaves open, from the number of images and the devices.

A first run on a small set succeeds if the encoder takes many steps, with small batches, a queue of recent keys and
small views. The rule is a pure function. A run stores its choices in config.json and keeps them when it resumes, even
on other devices. Source: ours; docs/how_to/own_images.md has the measurements.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from dualcl_jax.system.config import flatten
from dualcl_jax.system.errors import UserError

TYPICAL_IMAGES = 10_000
"""The number of images that is assumed when a config is compiled without its data."""

OPEN: dict[str, type] = {
    'data.image_size': int,
    'views.preset': str,
    'model.stem': str,
    'model.width': int,
    'model.dtype': str,
    'loss.temperature': float,
    'queue.size': int,
    'train.batch_size': int,
    'train.epochs': int,
    'optimizer.learning_rate': float,
    'monitor.every_epochs': int,
}
"""The fields that a config may leave open, with their types. An open field has no value (None)."""

SMALLEST_QUEUE = 64
MEASUREMENTS = 10
"""The approximate number of times that a run measures its encoder."""
FIRST_LOOK = 0.25
"""Share of the run after which the accuracy first becomes meaningful."""
GRAY = 1e-6
"""Channels whose statistics differ by less than this are alike."""
FEW_IMAGES = 1000
"""An encoder learns little from fewer images than this."""


class Machine(NamedTuple):
    """The machine on which a run starts.

    Attributes:
      platform: the platform of the devices, such as 'cpu'.
      num_devices: the number of devices of all processes.
      bfloat16: whether a CPU multiplies bfloat16 in hardware.
    """

    platform: str
    num_devices: int
    bfloat16: bool = False


class Scale(NamedTuple):
    """The choices for one platform that do not depend on the number of images.

    Attributes:
      image_size, width: the values of `data.image_size` and `model.width`.
      batch_size: the number of images in a global batch.
      rate: the learning rate of SGD for this batch size; it scales linearly with the batch size.
      queue: the largest number of keys.
      images: the number of images that a run processes, within the limits of `epochs`.
      epochs: the fewest and the most epochs.
    """

    image_size: int
    width: int
    batch_size: int
    rate: float
    queue: int
    images: int
    epochs: tuple[int, int]


CPU = Scale(
    image_size=24,
    width=16,
    batch_size=32,
    rate=0.015,
    queue=1024,
    images=300_000,
    epochs=(10, 400),
)
ACCELERATOR = Scale(
    image_size=64,
    width=64,
    batch_size=128,
    rate=0.06,
    queue=4096,
    images=1_000_000,
    epochs=(20, 400),
)
"""These values have not been measured."""


def leave_open(config: ConfigDict) -> None:
    """Removes the value of every field of `OPEN`; flags can still set one."""
    for field, kind in OPEN.items():
        section, _, name = field.rpartition('.')
        config[section][name] = config_dict.placeholder(kind)


def open_fields(config: ConfigDict) -> tuple[str, ...]:
    """The fields that a config leaves open, in the order of `OPEN`."""
    fields = dict(flatten(config))
    return tuple(field for field in OPEN if fields.get(field, '') is None)


def is_gray(statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
    """Whether images with this mean and standard deviation per channel have no colours: all channels are alike.

    Example:
      >>> is_gray(((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))), is_gray(((0.5, 0.4, 0.5), (0.2, 0.2, 0.2)))
      (True, False)
    """
    return all(max(values) - min(values) < GRAY for values in statistics)


def choose(config: ConfigDict, num_images: int, machine: Machine, *, gray: bool = False) -> dict[str, Any]:
    """Chooses a value for every field of `OPEN`. Values that depend on other fields follow those that the config sets.

    The learning rate is that of SGD, at `optimizer.reference_batch` where it is set and else at the batch.

    Args:
      config: a config, whose fields may be open.
      num_images: the number of training images, at least 1.
      machine: the machine on which the run starts.
      gray: whether the images have no colours, see `is_gray`.

    Example:
      >>> from dualcl_jax.configs import folder
      >>> chosen = choose(folder.get_config(), 3000, Machine('cpu', 1))
      >>> chosen['train.batch_size'], chosen['queue.size'], chosen['train.epochs']
      (32, 1024, 100)
    """
    set_ = {field: value for field, value in flatten(config) if field not in open_fields(config)}
    scale = CPU if machine.platform == 'cpu' else ACCELERATOR
    devices = machine.num_devices
    batch = set_.get('train.batch_size', max(min(scale.batch_size, num_images) // devices, 1) * devices)
    fewest, most = scale.epochs
    epochs = set_.get('train.epochs', min(max(round(scale.images / num_images), fewest), most))
    length = config.train.steps // max(num_images // batch, 1) if config.train.steps else epochs
    return {
        'data.image_size': scale.image_size,
        'views.preset': 'small_gray' if gray else 'small',
        'model.stem': 'cifar',
        'model.width': scale.width,
        'loss.temperature': 0.1,
        'model.dtype': 'bfloat16' if machine.bfloat16 or machine.platform != 'cpu' else 'float32',
        'train.batch_size': batch,
        'queue.size': min(max(2 ** (num_images.bit_length() - 1), SMALLEST_QUEUE), scale.queue),
        'optimizer.learning_rate': scale.rate * (set_.get('optimizer.reference_batch') or batch) / scale.batch_size,
        'train.epochs': epochs,
        'monitor.every_epochs': max(length // MEASUREMENTS, 1),
    }


def fill(
    config: ConfigDict, num_images: int, machine: Machine, stored: ConfigDict | None = None, *, gray: bool = False
) -> ConfigDict:
    """Copies a config and fills every open field with the value of the stored run, or else that of `choose`.

    Args:
      config: a config, which is not changed. Without open fields it is returned itself.
      num_images, machine, gray: see `choose`.
      stored: the resolved config of the run in the workdir.

    Raises:
      UserError: the learning rate would be chosen for another optimizer than SGD.
    """
    opened = open_fields(config)
    if not opened:
        return config
    filled = ConfigDict(config.to_dict())
    before = {} if stored is None else dict(flatten(stored))
    _set(filled, {field: before[field] for field in opened if before.get(field) is not None})
    if 'optimizer.learning_rate' in open_fields(filled) and config.optimizer.name != 'sgd':
        raise UserError(
            'config.optimizer.learning_rate: is chosen automatically for sgd only; '
            f'set it for {config.optimizer.name}.\n'
            'With optimizer.reference_batch=256, MoCo v3 has 0.6 for lars and 1.5e-4 for adamw'
        )
    chosen = choose(filled, num_images, machine, gray=gray)
    _set(filled, {field: chosen[field] for field in open_fields(filled)})
    return filled


def _set(config: ConfigDict, values: Mapping[str, Any]) -> None:
    for field, value in values.items():
        section, _, name = field.rpartition('.')
        config[section][name] = value


def describe(config: ConfigDict, opened: Collection[str], num_images: int, machine: Machine) -> str:
    """Describes in one line what was chosen for the open fields of a run; empty if none of them matters."""
    fields = dict(flatten(config))
    values = ' '.join(
        f'{field}={fields[field]}' for field in opened if field != 'train.epochs' or not config.train.steps
    )
    if not values:
        return ''
    return f'for {num_images:,} images on {machine.platform}: {values}; set a field with --config.FIELD=VALUE'
