"""Compares the k largest entries found by counting with a stable sort in NumPy."""

from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from dualcl_jax.method.negatives import top_k
from dualcl_jax.method.negatives.top_k import largest


def by_sorting(values: np.ndarray, k: int) -> np.ndarray:
    """[B, K] bool: the k largest entries above -inf of each row, the first of equal ones."""
    chosen = np.zeros(values.shape, bool)
    np.put_along_axis(chosen, np.argsort(-values, axis=1, kind='stable')[:, :k], True, axis=1)
    return chosen & (values > -np.inf)


def finder(probes: int, bisect_every: int) -> Callable[..., jax.Array]:
    """`largest` with this many probes in a pass, one in `bisect_every` of which bisects."""

    def find(values: jax.Array, k: jax.Array) -> jax.Array:
        with mock.patch.multiple(top_k, PROBES=probes, BISECT_EVERY=bisect_every):
            return largest(values, k)

    return jax.jit(find)


FIND = {
    passes: finder(*passes)
    for passes in ((top_k.PROBES, top_k.BISECT_EVERY), (top_k.TPU_PROBES, top_k.TPU_BISECT_EVERY))
}

ENTRIES = st.one_of(
    st.floats(-1.0, 1.0, width=32, allow_subnormal=False).map(lambda x: x + 0.0),
    st.sampled_from([0.0, 0.25, 1.0, -1.0, -np.inf, 1e-30, -1e-30]),
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False).map(lambda x: x + 0.0),
)


@settings(max_examples=200)
@given(st_numpy.arrays(np.float32, (3, 17), elements=ENTRIES), st.integers(0, 20))
def test_any_values(values: np.ndarray, k: int) -> None:
    for find in FIND.values():
        np.testing.assert_array_equal(find(jnp.asarray(values), k), by_sorting(values, k))


@pytest.mark.parametrize('k', [1, 100, 1024, 5000])
@pytest.mark.parametrize('kind', ['normal', 'skewed', 'two clusters', 'coarse', 'mostly forbidden'])
def test_long_rows(kind: str, k: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 5000)) * 0.1
    if kind == 'skewed':
        values = np.exp(values * 100)
    elif kind == 'two clusters':
        values = np.where(rng.random(values.shape) < 0.3, 0.9, -0.9) + values * 1e-3
    elif kind == 'coarse':
        values = np.round(values, 1) + 0.0
    elif kind == 'mostly forbidden':
        values = np.where(rng.random(values.shape) < 0.9, -np.inf, values)
    values = values.astype(np.float32)
    for find in FIND.values():
        np.testing.assert_array_equal(find(jnp.asarray(values), k), by_sorting(values, k))


def test_several_probes_take_fewer_passes() -> None:
    values = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2**14)), jnp.float32)
    found = [int(top_k._search(values, jnp.int32(4000), None, *passes).turn) for passes in FIND]
    assert found[1] <= 6 < found[0]


def test_k_may_be_traced() -> None:
    values = np.random.default_rng(0).normal(size=(2, 30)).astype(np.float32)
    steps = jax.jit(lambda ks: jax.lax.map(lambda k: largest(jnp.asarray(values), k), ks))(jnp.arange(5))
    for k, chosen in enumerate(steps):
        np.testing.assert_array_equal(chosen, by_sorting(values, k))
