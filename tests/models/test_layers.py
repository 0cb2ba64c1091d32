"""Compares initialisers and layers with Flax, and gradients in bfloat16 with those in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.models import convnext, layers, transformer, vit
from dualcl_jax.models.layers import lecun_normal

LAYERS = {
    'dense': lambda dtype: layers.Dense(16, dtype=dtype),
    'of a transformer': lambda dtype: transformer.Dense(16, dtype),
    'depthwise': lambda dtype: convnext.Depthwise(dtype),
}


@pytest.mark.parametrize('shape', [(3, 3, 5, 7), (1, 1, 4, 6), (11, 3)])
def test_lecun_normal_agrees_with_flax(shape):
    key = jax.random.key(4)
    np.testing.assert_allclose(lecun_normal(key, shape), nn.initializers.lecun_normal()(key, shape), atol=1e-6)


@pytest.mark.parametrize('use_bias', [True, False])
def test_dense_equals_that_of_flax(use_bias):
    """Bit for bit, with the same variables."""
    x = jax.random.normal(jax.random.key(1), (3, 5, 7))
    flax = nn.Dense(4, use_bias, kernel_init=lecun_normal)
    values, variables = jax.jit(flax.init_with_output)(jax.random.key(0), x)
    found, same = jax.jit(layers.Dense(4, use_bias).init_with_output)(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize('name', LAYERS)
def test_the_gradient_of_a_bias_has_the_precision_of_bfloat16(name):
    """A sum in bfloat16 is a seventh too small."""
    shape = (64, 16, 16, 16) if name == 'depthwise' else (64, 256, 16)
    x = jax.random.normal(jax.random.key(1), shape)
    weights = jax.random.normal(jax.random.key(2), shape) + jnp.linspace(-1, 1, 16).reshape(
        (1,) * (len(shape) - 1) + (16,)
    )

    def gradient(dtype):
        layer = LAYERS[name](dtype)
        params = layer.init(jax.random.key(0), x)
        return jax.jit(jax.grad(lambda params: (layer.apply(params, x).astype(jnp.float32) * weights).sum()))(params)

    rough, exact = (gradient(dtype)['params']['bias'] for dtype in (jnp.bfloat16, jnp.float32))
    assert np.linalg.norm(rough - exact) < 0.01 * np.linalg.norm(exact)


def test_the_gradient_of_learned_positions_has_the_precision_of_bfloat16():
    images = jax.random.normal(jax.random.key(1), (1024, 8, 8, 3)) + 1.0

    def gradient(dtype):
        network = vit.VisionTransformer(4, 16, 0, 2, norm=None, positions='learned', dtype=dtype)
        variables = network.init(jax.random.key(0), images, train=True)
        return jax.jit(jax.grad(lambda variables: network.apply(variables, images, train=True)[:, :8].sum()))(variables)

    rough, exact = (gradient(dtype)['params'] for dtype in (jnp.bfloat16, jnp.float32))
    for name in ('pos_embed', 'cls_token'):
        assert np.linalg.norm(rough[name] - exact[name]) < 0.02 * np.linalg.norm(exact[name])
