"""Dropout whose masks are drawn by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dualcl_jax.models.dropout import LEVELS, dropout, keep_mask


def keys(count, seed=0):
    return jax.random.key_data(jax.random.split(jax.random.key(seed), count))


@pytest.mark.parametrize('rate', [0.1, 0.5, 1 / 256, 0.9])
def test_rate_and_mean(rate):
    x = jnp.ones((64, 50, 40))
    out = np.asarray(dropout(x, keys(64), 3, rate))
    probability = round(rate * LEVELS) / LEVELS
    dropped = int((out == 0).sum())
    assert stats.binomtest(dropped, out.size, probability).pvalue > 1e-3
    np.testing.assert_allclose(out[out != 0], 1 / (1 - probability), rtol=1e-6)
    by_example = (out == 0).sum(axis=(1, 2))
    assert stats.chisquare(by_example).pvalue > 1e-4 or rate == 1 / 256


def test_no_keys_and_rate_0_change_nothing():
    x = jnp.ones((2, 3))
    assert dropout(x, None, 0, 0.5) is x
    assert dropout(x, keys(2), 0, 0.0) is x


def test_a_mask_depends_on_the_key_and_the_layer_alone():
    mask = np.asarray(keep_mask(keys(8), 1, (6, 7), 128))
    np.testing.assert_array_equal(mask[3:5], keep_mask(keys(8)[3:5], 1, (6, 7), 128))
    others = [keep_mask(keys(8), 2, (6, 7), 128), keep_mask(keys(8, seed=1), 1, (6, 7), 128), mask[::-1]]
    for other in others:
        assert 0.4 < (mask == np.asarray(other)).mean() < 0.6


def test_masks_are_independent():
    """No correlation between neighbours in a mask, between layers, examples, or halves of a key."""
    base = np.asarray(keep_mask(keys(1), 0, (1 << 16,), 128))[0].astype(float) - 0.5
    changed = keys(1) ^ jnp.array([[1, 0]], jnp.uint32), keys(1) ^ jnp.array([[0, 1]], jnp.uint32)
    others = [np.roll(base, shift) for shift in (1, 2, 4, 32)]
    masks = [keep_mask(keys(1), layer, (1 << 16,), 128) for layer in (1, 2, 255)]
    masks += [keep_mask(other, 0, (1 << 16,), 128) for other in changed]
    others += [np.asarray(mask)[0].astype(float) - 0.5 for mask in masks]
    for other in others:
        assert abs((base * other).mean()) < 0.25 * 5 / 256  # five standard deviations


def test_gradient_goes_through_the_same_mask():
    x = jnp.linspace(1, 2, 2 * 30).reshape(2, 30)
    out, gradient = jax.value_and_grad(lambda x: dropout(x, keys(2), 0, 0.3).sum())(x)
    forward = dropout(x, keys(2), 0, 0.3)
    np.testing.assert_allclose(gradient * x, forward, rtol=1e-6)
    assert out == forward.sum()


def test_bfloat16_stays():
    assert dropout(jnp.ones((2, 5), jnp.bfloat16), keys(2), 0, 0.1).dtype == jnp.bfloat16
