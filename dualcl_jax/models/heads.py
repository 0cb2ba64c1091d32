"""Projections from the backbone's features to the space where query and key are compared, and predictors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.layers import Dense, relu
from dualcl_jax.system.errors import UserError


class Head(nn.Module):
    """Features float32 [N, F] to float32 [N, dim], not normalised.

    Attributes:
      compute: a value of `PROJECTIONS` or `PREDICTORS`.
      dim: length of the result.
      hidden: width of the inner layers of MoCo v3's kinds.
      norm: makes a normalisation layer from `name`, for the kinds that use one.
      dtype: the dtype of the computation.
    """

    compute: Callable[['Head', jax.Array, bool], jax.Array]
    dim: int
    hidden: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.compute(self, features.astype(self.dtype), train).astype(jnp.float32)


def identity(head: Head, x: jax.Array, train: bool) -> jax.Array:
    """Returns the features [N, F] without a projection; F must be `dim`.

    Raises:
      UserError: F is not `dim`.
    """
    if x.shape[-1] != head.dim:
        raise UserError(
            f'config.model.dim={head.dim}: without a projection it is the number of features; set it to '
            f'{x.shape[-1]}, or choose another model.projection'
        )
    return x


def linear(head: Head, x: jax.Array, train: bool) -> jax.Array:
    """One dense layer with bias, [N, F] to [N, dim] (MoCo, arXiv 1911.05722)."""
    return Dense(head.dim, dtype=head.dtype, name='fc')(x)


def tanh(head: Head, x: jax.Array, train: bool) -> jax.Array:
    """`linear`, then tanh, computed in float32 (SimCSE, arXiv 2104.08821, its published code)."""
    return jnp.tanh(linear(head, x, train).astype(jnp.float32))


def mlp(head: Head, x: jax.Array, train: bool) -> jax.Array:
    """A hidden layer as wide as the features, ReLU, then `linear` (MoCo v2, arXiv 2003.04297)."""
    x = relu(Dense(x.shape[-1], dtype=head.dtype, name='fc_0')(x))
    return Dense(head.dim, dtype=head.dtype, name='fc_2')(x)


def mlp_bn(head: Head, x: jax.Array, train: bool, *, layers: int, last_bn: bool) -> jax.Array:
    """MoCo v3's perceptron (arXiv 2104.02057, §A): dense layers without bias, each followed by batch normalisation.

    The inner layers are `hidden` wide and end in ReLU. The last layer is normalised, without scale and bias, only if
    `last_bn`.
    """
    for layer in range(layers - 1):
        x = Dense(head.hidden, dtype=head.dtype, name=f'fc_{layer}', use_bias=False)(x)
        x = relu(head.norm(name=f'bn_{layer}')(x, train=train))
    x = Dense(head.dim, dtype=head.dtype, name=f'fc_{layers - 1}', use_bias=False)(x)
    return head.norm(name=f'bn_{layers - 1}', affine=False)(x, train=train) if last_bn else x


# MoCo v3's projection has two layers after a ResNet and three after a ViT.
PROJECTIONS: dict[str, Callable[..., jax.Array]] = {
    'none': identity,
    'linear': linear,
    'tanh': tanh,
    'mlp': mlp,
    'mlp2_bn': partial(mlp_bn, layers=2, last_bn=True),
    'mlp3_bn': partial(mlp_bn, layers=3, last_bn=True),
}
# MoCo v3's predictor has two layers, without the last normalisation after a ResNet.
PREDICTORS: dict[str, Callable[..., jax.Array] | None] = {
    'none': None,
    'mlp2': partial(mlp_bn, layers=2, last_bn=False),
    'mlp2_bn': partial(mlp_bn, layers=2, last_bn=True),
}
NORMALIZED = ('mlp2', 'mlp2_bn', 'mlp3_bn')
"""The projections and predictors with batch normalisation."""
