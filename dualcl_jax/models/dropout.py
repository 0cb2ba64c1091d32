"""Dropout (1207.0580) with a mask that each example draws from its own key, so it does not depend on the batch.

A mask is a function of an example's key, the number of the layer, and the place in the example. The random bits come
from a hash of a counter, which costs a CPU a fraction of what JAX's generators cost; it is not for cryptography.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 256
"""Each entry is kept or dropped by 8 random bits, so rates are multiples of 1/256."""


def dropout(x: jax.Array, keys: jax.Array | None, layer: int, rate: float) -> jax.Array:
    """Sets a share of entries to 0 and scales the others, so that the expected value is unchanged.

    Args:
      x: [n, ...], of any float dtype.
      keys: uint32 [n, 2], the data of a PRNG key for each example; None for no dropout.
      layer: a number that differs between the masks of one network.
      rate: the share in [0, 1), which is rounded to a multiple of 1/256.

    Returns:
      The shape and dtype of x.
    """
    dropped = round(rate * LEVELS)
    if keys is None or dropped == 0:
        return x
    dropped = min(dropped, LEVELS - 1)
    kept = keep_mask(keys, layer, x.shape[1:], dropped)
    return jnp.where(kept, x * np.asarray(LEVELS / (LEVELS - dropped), x.dtype), jnp.zeros((), x.dtype))


def keep_mask(keys: jax.Array, layer: int, shape: tuple[int, ...], dropped: int) -> jax.Array:
    """Draws which entries of n examples are kept: bool [n, *shape], False with probability dropped / 256.

    Args:
      keys: uint32 [n, 2].
      layer: the number of the mask.
      shape: the shape of one example.
      dropped: an integer in [0, 255].
    """
    count = math.prod(shape)
    words = random_words(keys, layer, -(-count // 4))
    bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(keys.shape[0], -1)[:, :count]
    return (bytes_ >= np.uint8(dropped)).reshape(-1, *shape)


def random_words(keys: jax.Array, layer: int, count: int) -> jax.Array:
    """Computes random words uint32 [n, count] from keys uint32 [n, 2] and the number of a layer."""
    place = jax.lax.iota(jnp.uint32, count)[None] + np.uint32(layer << 24)
    return mix(mix(place ^ keys[:, :1]) + keys[:, 1:])


def mix(x: Any) -> jax.Array:
    """A bijection of uint32 in which every bit of x affects every bit of the result (lowbias32 of C. Wellons)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
