"""Compares initialisers and convolutions with Flax and jax.lax."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from dualcl_jax.models.layers import lecun_normal


@pytest.mark.parametrize('shape', [(3, 3, 5, 7), (1, 1, 4, 6), (11, 3)])
def test_lecun_normal_agrees_with_flax(shape):
    key = jax.random.key(4)
    np.testing.assert_allclose(lecun_normal(key, shape), nn.initializers.lecun_normal()(key, shape), atol=1e-6)
