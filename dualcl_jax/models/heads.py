"""Projections from the backbone's features to the space where query and key are compared, and predictors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.layers import Dense, relu
from dualcl_jax.system.errors import UserError


def identity(
    x: jax.Array, *, dim: int, hidden: int, dtype: Any, norm: Callable[..., nn.Module], train: bool
) -> jax.Array:
    """Returns the features [N, F] without a projection; F must be `dim`.

    Raises:
      UserError: F is not `dim`.
    """
    if x.shape[-1] != dim:
        raise UserError(
            f'config.model.dim={dim}: without a projection it is the number of features; set it to {x.shape[-1]}, or '
            'choose another model.projection'
        )
    return x


def linear(
    x: jax.Array, *, dim: int, hidden: int, dtype: Any, norm: Callable[..., nn.Module], train: bool
) -> jax.Array:
    """One dense layer with bias, [N, F] to [N, dim] (MoCo, arXiv 1911.05722)."""
    return Dense(dim, dtype=dtype, name='fc')(x)


def tanh(x: jax.Array, *, dim: int, hidden: int, dtype: Any, norm: Callable[..., nn.Module], train: bool) -> jax.Array:
    """`linear`, then tanh, computed in float32 (SimCSE, arXiv 2104.08821, its published code)."""
    return jnp.tanh(Dense(dim, dtype=dtype, name='fc')(x).astype(jnp.float32))


def mlp(x: jax.Array, *, dim: int, hidden: int, dtype: Any, norm: Callable[..., nn.Module], train: bool) -> jax.Array:
    """A hidden layer as wide as the features, ReLU, then `linear` (MoCo v2, arXiv 2003.04297)."""
    x = relu(Dense(x.shape[-1], dtype=dtype, name='fc_0')(x))
    return Dense(dim, dtype=dtype, name='fc_2')(x)


def mlp_bn(
    x: jax.Array,
    *,
    layers: int,
    last_bn: bool,
    dim: int,
    hidden: int,
    dtype: Any,
    norm: Callable[..., nn.Module],
    train: bool,
) -> jax.Array:
    """MoCo v3's perceptron (arXiv 2104.02057, §A): dense layers without bias, each followed by batch normalisation.

    The inner layers are `hidden` wide and end in ReLU. The last layer is normalised, without scale and bias, only if
    `last_bn`.
    """
    for layer in range(layers - 1):
        x = Dense(hidden, dtype=dtype, name=f'fc_{layer}', use_bias=False)(x)
        x = relu(norm(name=f'bn_{layer}')(x, train=train))
    x = Dense(dim, dtype=dtype, name=f'fc_{layers - 1}', use_bias=False)(x)
    return norm(name=f'bn_{layers - 1}', affine=False)(x, train=train) if last_bn else x


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


class Head(nn.Module):
    """Features float32 [N, F] to float32 [N, dim], not normalised.

    Attributes:
      compute: a value of `PROJECTIONS` or `PREDICTORS`.
      dim: length of the result.
      hidden: width of the inner layers of MoCo v3's kinds.
      norm: makes a normalisation layer from `name`, for the kinds that use one.
      dtype: the dtype of the computation.
    """

    compute: Callable[..., jax.Array]
    dim: int
    hidden: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        x = features.astype(self.dtype)
        out = self.compute(x, dim=self.dim, hidden=self.hidden, dtype=self.dtype, norm=self.norm, train=train)
        return out.astype(jnp.float32)
