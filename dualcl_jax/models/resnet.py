"""ResNet (arXiv 1512.03385) with torchvision's geometry and names, so that weights can be converted between them.

Convolutions are padded equally on all sides; the bottleneck has its stride in the 3×3 convolution ("v1.5"); no residual
branch is initialised to zero. Names differ from torchvision's only in `_` instead of the dot before a number:
`layer1_0/conv1` is `layer1.0.conv1` and `downsample_0` is `downsample.0`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.layers import Conv, global_mean, relu
from dualcl_jax.models.pooling import max_pool

STEMS = ('cifar', 'imagenet')


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut: [N, H, W, I] to [N, H / stride, W / stride, width].

    Attributes:
      width: channels of both convolutions.
      stride: the stride of the first convolution and the shortcut.
      norm: makes a normalisation layer from `name`; the layer is called with `train`.
      dtype: the dtype of the computation and the output.
    """

    width: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.width, 3, self.stride, dtype=self.dtype, name='conv1')(x)
        y = relu(self.norm(name='bn1')(y, train=train))
        y = Conv(self.width, 3, dtype=self.dtype, name='conv2')(y)
        y = self.norm(name='bn2')(y, train=train)
        return relu(y + _shortcut(self, x, y.shape[-1], train=train))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut: [N, H, W, I] to [N, H / stride, W / stride, 4 * width].

    Attributes: as `BasicBlock`; `stride` is that of the 3×3 convolution and the shortcut.
    """

    width: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.width, 1, dtype=self.dtype, name='conv1')(x)
        y = relu(self.norm(name='bn1')(y, train=train))
        y = Conv(self.width, 3, self.stride, dtype=self.dtype, name='conv2')(y)
        y = relu(self.norm(name='bn2')(y, train=train))
        y = Conv(self.width * self.expansion, 1, dtype=self.dtype, name='conv3')(y)
        y = self.norm(name='bn3')(y, train=train)
        return relu(y + _shortcut(self, x, y.shape[-1], train=train))


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, features: int, *, train: bool) -> jax.Array:
    """Returns x if the shape is unchanged, else applies a strided 1×1 convolution and a norm. Called inside `block`."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = Conv(features, 1, block.stride, dtype=block.dtype, name='downsample_0')(x)
    return block.norm(name='downsample_1')(x, train=train)


class ResNet(nn.Module):
    """Residual network up to the global average: images float32 [N, H, W, C] to features float32 [N, F].

    F is 8 * width for basic blocks and 32 * width for bottlenecks.

    Attributes:
      depths: blocks of the four stages.
      block: `BasicBlock` or `Bottleneck`.
      norm: makes a normalisation layer from `name`; the layer is called with `train`.
      stem: 'cifar' (3×3 convolution with stride 1, no pooling) or 'imagenet' (7×7 with stride 2, then 3×3 maximum
        pooling with stride 2).
      width: channels of the first stage.
      remat: store only the inputs of blocks for the backward pass and recompute the rest.
      dtype: the dtype of the computation; parameters and features are float32.
    """

    depths: tuple[int, int, int, int]
    block: type[BasicBlock] | type[Bottleneck]
    norm: Callable[..., nn.Module]
    stem: str = 'imagenet'
    width: int = 64
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        size, stride = (3, 1) if self.stem == 'cifar' else (7, 2)
        x = Conv(self.width, size, stride, dtype=self.dtype, name='conv1')(images)
        x = relu(self.norm(name='bn1')(x, train=train))
        if self.stem == 'imagenet':
            x = max_pool(x, 3, 2, 1)
        block = nn.remat(self.block, static_argnums=(2,)) if self.remat else self.block
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f'layer{stage + 1}_{index}'
                x = block(self.width * 2**stage, stride, self.norm, self.dtype, name=name)(x, train)
        return global_mean(x)


RESNETS = {
    'resnet18': partial(ResNet, (2, 2, 2, 2), BasicBlock),
    'resnet34': partial(ResNet, (3, 4, 6, 3), BasicBlock),
    'resnet50': partial(ResNet, (3, 4, 6, 3), Bottleneck),
}
