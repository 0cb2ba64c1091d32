"""ConvNeXt (arXiv 2201.03545) with timm's names: `stages_0_blocks_1/fc1` is `stages.0.blocks.1.mlp.fc1`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.layers import Dense, add_bias, bias_init, global_mean, layer_norm, normal, patches

EPSILON = 1e-6
"""The ε of every layer norm."""
PATCH = 4
"""Side of the patches that the stem projects."""
LEAST = 32
"""The least side of an image in pixels: four stages halve or quarter it."""
_init = normal(0.02, truncated=True)


def _dense(features: int, *, name: str, dtype: Any) -> Dense:
    return Dense(features, dtype=dtype, kernel_init=_init, name=name)


class Depthwise(nn.Module):
    """A 7×7 convolution of each channel, [N, H, W, D] to [N, H, W, D] in `dtype`, with a bias; see `layers.add_bias`.

    Attributes:
      dtype: the dtype of the computation; the parameters are float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dim = x.shape[-1]
        kernel = self.param('kernel', _init, (7, 7, 1, dim), jnp.float32)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding=((3, 3), (3, 3)),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=dim,
        )
        return add_bias(y, self.param('bias', bias_init, (dim,), jnp.float32))


class Block(nn.Module):
    """A 7×7 convolution of each channel and a perceptron, around a shortcut: [N, H, W, D] to [N, H, W, D] in `dtype`.

    Attributes:
      dtype: the dtype of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dim = x.shape[-1]
        y = Depthwise(self.dtype, name='conv_dw')(x)
        y = _dense(4 * dim, name='fc1', dtype=self.dtype)(layer_norm(y, EPSILON, name='norm'))
        y = _dense(dim, name='fc2', dtype=self.dtype)(nn.gelu(y, approximate=False))
        gamma = self.param('gamma', nn.initializers.constant(1e-6), (dim,), jnp.float32)
        return x + (gamma[None, None, None] * y.astype(jnp.float32)).astype(self.dtype)


class ConvNeXt(nn.Module):
    """Images float32 [N, H, W, C] to features float32 [N, dims[-1]]; examples never interact, not even in training.

    Attributes:
      depths, dims: blocks and channels of the four stages.
      norm, stem, width: not used: there are no batch statistics, and there is only one stem.
      remat: store only the inputs of blocks for the backward pass and recompute the rest.
      dtype: the dtype of the computation; parameters and features are float32.
    """

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    norm: Callable[..., nn.Module]
    stem: str = 'imagenet'
    width: int = 64
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = _dense(self.dims[0], name='stem_0', dtype=self.dtype)(patches(images.astype(self.dtype), PATCH))
        x = layer_norm(x, EPSILON, name='stem_1')
        block = nn.remat(Block) if self.remat else Block
        for stage, (depth, dim) in enumerate(zip(self.depths, self.dims, strict=True)):
            if stage:
                x = patches(layer_norm(x, EPSILON, name=f'stages_{stage}_downsample_0'), 2)
                x = _dense(dim, name=f'stages_{stage}_downsample_1', dtype=self.dtype)(x)
            for index in range(depth):
                x = block(self.dtype, name=f'stages_{stage}_blocks_{index}')(x)
        return layer_norm(global_mean(x), EPSILON, name='head_norm')


convnext_t = partial(ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768))
