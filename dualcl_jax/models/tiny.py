"""A network of two convolutions without normalisation, for tests, where it compiles quickly. Not for training."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.layers import Conv, global_mean, relu


class Tiny(nn.Module):
    """Images float32 [N, H, W, C] to features float32 [N, 2 * width]; examples never interact, not even in training.

    Attributes: as `ResNet`; `norm` and `stem` are not used.
    """

    norm: Callable[..., nn.Module]
    stem: str = 'cifar'
    width: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = relu(Conv(self.width, 3, 2, dtype=self.dtype, name='conv1')(images))
        x = relu(Conv(2 * self.width, 3, 2, dtype=self.dtype, name='conv2')(x))
        return global_mean(x)
