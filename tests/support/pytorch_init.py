"""Runs `dualcl_jax.main` with PyTorch's default initialisation, to compare accuracies with programs that use it.

    python -m tests.support.pytorch_init --config=... --workdir=...      the flags of dualcl_jax.main

PyTorch draws the kernels of convolutions and dense layers from U(-1/√n, 1/√n) with n the fan-in: a third of Lecun's
variance. It draws biases likewise; here they stay zero.
"""

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp

from dualcl_jax import main
from dualcl_jax.models import layers


def pytorch_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """U(-1/√n, 1/√n), with n the product of all axes except the last, the output."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


if __name__ == '__main__':
    layers.lecun_normal = pytorch_uniform
    sys.exit(main.main())
