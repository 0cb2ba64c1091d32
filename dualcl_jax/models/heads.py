"""Projections: from the backbone's features to the space where query and key are compared."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.layers import dense, relu


def linear(x: jax.Array, *, dim: int, dtype: Any, norm: Callable[..., nn.Module], train: bool) -> jax.Array:
    """One dense layer with bias, [N, F] to [N, dim] (MoCo, arXiv 1911.05722)."""
    return dense(dim, dtype=dtype, name='fc')(x)


def mlp(x: jax.Array, *, dim: int, dtype: Any, norm: Callable[..., nn.Module], train: bool) -> jax.Array:
    """A hidden layer as wide as the features, ReLU, then `linear` (MoCo v2, arXiv 2003.04297)."""
    x = relu(dense(x.shape[-1], dtype=dtype, name='fc_0')(x))
    return dense(dim, dtype=dtype, name='fc_2')(x)


PROJECTIONS: dict[str, Callable[..., jax.Array]] = {'linear': linear, 'mlp': mlp}


class Projection(nn.Module):
    """Features float32 [N, F] to projections float32 [N, dim], not normalised.

    Attributes:
      kind: a key of `PROJECTIONS`.
      dim: length of a projection.
      norm: makes a normalisation layer from `name`, for the kinds that have one.
      dtype: of the computation.
    """

    kind: str
    dim: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        project = PROJECTIONS[self.kind]
        out = project(features.astype(self.dtype), dim=self.dim, dtype=self.dtype, norm=self.norm, train=train)
        return out.astype(jnp.float32)
