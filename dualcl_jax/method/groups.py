"""The groups of a config's batch statistics: how many examples each has, and whether they are enough."""

import math
from typing import Any

from dualcl_jax.models.heads import NORMALIZED
from dualcl_jax.models.norm import norm_layout
from dualcl_jax.models.resnet import RESNETS
from dualcl_jax.system.errors import UserError

LEAST = 2
"""With fewer examples in a group, normalisation removes everything that distinguishes them."""
_STRIDE = {'cifar': 8, 'imagenet': 32}
"""The side of the image for each position of the last stage of a ResNet, by its stem."""


def group_size(config: Any, num_devices: int) -> int:
    """The number of examples whose views share their batch statistics, rounded down."""
    groups, span = norm_layout(config.model.norm, num_devices)
    return config.train.batch_size // (num_devices * config.train.accumulate_steps) * span // groups


def normalized_alone(config: Any) -> str:
    """Names a part of the encoder with batch statistics over one value for each example; empty if there is none.

    They are in heads with batch normalisation, and in a ResNet whose last stage has a single position. A network of the
    user's own may have them, too; it is not examined.
    """
    model, size = config.model, config.data.image_size
    for field in ('projection', 'predictor'):
        if model[field] in NORMALIZED:
            return f'model.{field}={model[field]}'
    known = size is not None and model.stem is not None  # else they are open
    if model.name in RESNETS and known and size <= _STRIDE[model.stem]:
        return f'model.name={model.name}, whose last stage is 1×1 at data.image_size={size},'
    return ''


def check_groups(config: Any, num_devices: int) -> None:
    """Checks that the groups divide the examples of a device, and have enough of them.

    Args:
      config: a config whose batch is set, and divided by the devices and by `accumulate_steps`.
      num_devices: the devices that share the batch.

    Raises:
      UserError: they do not.
    """
    train, norm = config.train, config.model.norm
    groups, span = norm_layout(norm, num_devices)
    share, in_parts = train.batch_size // (num_devices * train.accumulate_steps), train.accumulate_steps > 1
    sizes = f'train.batch_size={train.batch_size}'
    sizes += f', train.accumulate_steps={train.accumulate_steps}' if in_parts else ''
    alone = normalized_alone(config)
    if alone and group_size(config, num_devices) < LEAST:
        remedies = ['fewer groups'] if groups * num_devices > span else []
        remedies += ['fewer train.accumulate_steps'] if in_parts else []
        raise UserError(
            f'config.model.norm={norm!r}: the batch normalisation of {alone} needs {LEAST} images in a group, and has '
            f'fewer ({sizes}); use {", or ".join([*remedies, "a larger batch"])}'
        )
    if share % groups:
        raise UserError(
            f'config.model.norm={norm!r}: {groups} groups on a device do not divide its {share} '
            f'{"image" if share == 1 else "images"}{" of a part" if in_parts else ""} ({sizes}); '
            f'use split:{math.gcd(groups, share) * num_devices}'
        )
