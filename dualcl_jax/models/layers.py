"""Layers and initialisers shared by all models."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.convolution import conv


def normal(deviation: float, *, truncated: bool = False) -> nn.initializers.Initializer:
    """Initialiser with normal values times `deviation`; they are truncated at ±2 first if `truncated`.

    They are drawn flat, because XLA:CPU takes seconds to compile a random draw of several dimensions and a tenth of a
    second for a flat one (jax 0.12).
    """
    draw = partial(jax.random.truncated_normal, lower=-2, upper=2) if truncated else jax.random.normal

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return deviation * draw(key, shape=(math.prod(shape),), dtype=dtype).reshape(shape)

    return init


def lecun_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal values truncated at two deviations, with variance 1 / fan-in; the last axis of `shape` is the output.

    The values equal those of `nn.initializers.lecun_normal()`.
    """
    deviation = math.sqrt(1 / math.prod(shape[:-1])) / 0.87962566103423978  # deviation of the truncated normal
    return normal(deviation, truncated=True)(key, shape, dtype)


bias_init = nn.initializers.zeros_init()
norm_scale_init = nn.initializers.ones_init()


class Conv(nn.Module):
    """Square convolution without bias; the parameter `kernel` is float32 [size, size, I, features].

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: step in both directions.
      padding: zeros on each side; None means size // 2, torchvision's choice.
      dtype: the dtype of the computation and the output.
    """

    features: int
    size: int
    stride: int = 1
    padding: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', lecun_normal, shape, jnp.float32)
        padding = self.size // 2 if self.padding is None else self.padding
        precision = jax.config.jax_default_matmul_precision  # it may differ where the backward pass is traced
        return conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding, precision)


def layer_norm(x: jax.Array, epsilon: float, *, name: str) -> jax.Array:
    """Layer norm over the last axis, computed in float32 and returned in the dtype of x."""
    return nn.LayerNorm(epsilon=epsilon, name=name)(x.astype(jnp.float32)).astype(x.dtype)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias in the dtype of x, for a float32 bias whose shape is that of the last axes of x.

    It is added in float32, so that its gradient, the sum of that of x over the first axes, is summed in float32.
    XLA:CPU sums bfloat16 values in bfloat16, which rounds each addition, and takes longer for it.
    """
    return (x.astype(jnp.float32) + jnp.expand_dims(bias, range(x.ndim - bias.ndim))).astype(x.dtype)


class Dense(nn.Module):
    """Dense layer [..., I] to [..., features], which computes in and returns `dtype`.

    The parameters are float32: `kernel` [I, features] and `bias` [features].

    Attributes:
      features: length of the result.
      use_bias: whether there is a bias.
      dtype: the dtype of the computation.
      kernel_init: initialiser of the kernel; the bias is 0 at first.
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = lecun_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        return add_bias(y, self.param('bias', bias_init, (self.features,), jnp.float32)) if self.use_bias else y


def patches(x: jax.Array, side: int) -> jax.Array:
    """Splits [N, H, W, C] into [N, H // side, W // side, side · side · C]; cuts off leftover rows and columns."""
    count, height, width, channels = x.shape
    rows, columns = height // side, width // side
    x = x[:, : rows * side, : columns * side].reshape(count, rows, side, columns, side, channels)
    return x.swapaxes(2, 3).reshape(count, rows, columns, side * side * channels)


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0) in the dtype of x. It is computed in float32, because pure bfloat16 loops are slow in XLA:CPU."""
    return nn.relu(x.astype(jnp.float32)).astype(x.dtype)


def global_mean(x: jax.Array) -> jax.Array:
    """Mean over height and width, accumulated in float32: [N, H, W, C] of any float dtype to float32 [N, C]."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
