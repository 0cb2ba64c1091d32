"""Max pooling: XLA's values, and PyTorch's gradient, which goes to the first of equal values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.models.pooling import max_pool


def reference(x: np.ndarray, grad: np.ndarray, size: int, stride: int, padding: int) -> np.ndarray:
    """The gradient by a loop over windows, in float64."""
    total = np.zeros(x.shape)
    height, width = x.shape[1:3]
    for n, row, column, channel in np.ndindex(grad.shape):
        top, left = row * stride - padding, column * stride - padding
        places = [
            (i, j)
            for i in range(max(top, 0), min(top + size, height))
            for j in range(max(left, 0), min(left + size, width))
        ]
        winner = max(places, key=lambda place: x[n, *place, channel])
        total[n, *winner, channel] += grad[n, row, column, channel]
    return total


@pytest.mark.parametrize(
    ('side', 'size', 'stride', 'padding'), [(9, 3, 2, 1), (8, 3, 2, 1), (8, 2, 2, 0), (7, 5, 3, 2)]
)
@pytest.mark.parametrize('levels', [3, 1000], ids=['ties', 'no ties'])
def test_gradient(side: int, size: int, stride: int, padding: int, levels: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(levels, size=(2, side, side + 1, 3)).astype(np.float32)
    pooled, pull = jax.vjp(lambda x: max_pool(x, size, stride, padding), x)
    pads = ((padding, padding),) * 2
    np.testing.assert_array_equal(pooled, nn.max_pool(jnp.asarray(x), (size,) * 2, (stride,) * 2, pads))
    grad = rng.normal(size=pooled.shape).astype(np.float32)
    np.testing.assert_allclose(pull(grad)[0], reference(x, grad, size, stride, padding), rtol=1e-6, atol=1e-6)


def test_bfloat16_is_summed_in_float32() -> None:
    """One pixel is the largest of four windows. Bfloat16 would lose the thousandths that are added to 1 one by one."""
    x = jnp.zeros((1, 5, 5, 1), jnp.bfloat16).at[0, 1, 1, 0].set(1)
    pull = jax.vjp(lambda x: max_pool(x, 3, 1, 1), x)[1]
    grad = jnp.full((1, 5, 5, 1), 0.004, jnp.bfloat16).at[0, 0, 0, 0].set(1)
    found = float(pull(grad)[0][0, 1, 1, 0])
    exact = float(np.asarray(grad, np.float64)[0, :3, :3, 0].sum())
    assert found == float(jnp.asarray(exact, jnp.bfloat16))


def test_the_gradient_of_tpus() -> None:
    """Only TPUs keep XLA's own gradient: it needs less memory there, and is not deterministic on GPUs."""
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2, 1).sum()))
    traced = gradient.trace(jnp.zeros((2, 8, 8, 4)))
    scattered = {
        p: 'select_and_scatter' in traced.lower(lowering_platforms=(p,)).as_text() for p in ('cpu', 'cuda', 'tpu')
    }
    assert scattered == {'cpu': False, 'cuda': False, 'tpu': True}
