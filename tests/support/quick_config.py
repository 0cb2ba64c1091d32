"""A run that takes seconds, for the tests of whole runs: a network of two convolutions on a small .npz file.

python -m dualcl_jax.main --config=tests/support/quick_config.py --config.data.path=FILE --workdir=DIR
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import default
from dualcl_jax.models.encoder import MODELS
from dualcl_jax.models.layers import Conv, global_mean


class Smooth(nn.Module):
    """A network with batch statistics but no kink: sums that differ by rounding change gradients only by rounding.

    With ReLU, one of a million activations is so close to 0 that its sign changes, and losses soon differ by 1e-3.
    """

    norm: Callable[..., nn.Module]
    stem: str
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(self.width, 3, 2, name='conv1')(images)
        x = jnp.tanh(self.norm(name='bn1')(x, train=train))
        x = Conv(2 * self.width, 3, 2, name='conv2')(x)
        return global_mean(jnp.tanh(self.norm(name='bn2')(x, train=train)))


MODELS['smooth'] = Smooth  # must precede any use of the table


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'npz'
    config.data.image_size = 8
    config.views.preset = 'moco_cifar'
    config.model.name = 'smooth'
    config.model.width = 4
    config.model.norm = 'sync'
    config.model.projection = 'linear'
    config.model.dim = 16
    config.queue.size = 64
    config.negatives.selector = 'top_k'
    config.optimizer.learning_rate = 0.01
    config.train.batch_size = 32
    config.train.steps = 20
    config.log.every_steps = 1
    config.log.pictures = False  # they take seconds per run and are tested elsewhere
    config.checkpoint.every_steps = 0
    config.monitor.every_epochs = 0
    config.monitor.k = 20
    return config
