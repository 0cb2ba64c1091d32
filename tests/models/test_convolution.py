"""Compares the convolution and its gradients on a CPU with sums over the kernel in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dualcl_jax.models.convolution import FEW_CHANNELS, conv, input_gradient, kernel_gradient, space_to_depth


def reference(x, kernel, grad, stride, padding):
    """The output, and the gradients of the input and the kernel: sums over the positions of the kernel in float64.

    Not XLA's own gradients: of some geometries, such as (6, 1) with side 2, stride 2 and padding 1, it aborts (0.12).
    """
    x, kernel, grad = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, kernel, grad))
    (height, width), (rows, columns) = x.shape[1:3], grad.shape[1:3]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out, grad_x, grad_kernel = np.zeros_like(grad), np.zeros_like(padded), np.zeros_like(kernel)
    for i, j in np.ndindex(kernel.shape[:2]):
        seen = np.s_[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
        out += padded[seen] @ kernel[i, j]
        grad_x[seen] += grad @ kernel[i, j].T
        grad_kernel[i, j] = np.einsum('nhwi,nhwo->io', padded[seen], grad)
    return out, grad_x[:, padding : padding + height, padding : padding + width], grad_kernel


def make_case(shape, side, features, stride, padding, dtype=np.float32):
    """An input, a kernel and a gradient of the output."""
    rng = np.random.default_rng(0)
    out = [(extent + 2 * padding - side) // stride + 1 for extent in shape[1:3]]
    shapes = shape, (side, side, shape[3], features), (shape[0], *out, features)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def close(got, want, tolerance):
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=tolerance * max(1, np.abs(want).max()))


def check(x, kernel, grad, stride, padding):
    want, want_x, want_kernel = reference(x, kernel, grad, stride, padding)
    close(conv(x, kernel, stride, padding), want, 1e-5)
    close(input_gradient(grad, kernel, stride, padding, x.shape[1:3]), want_x, 1e-5)
    close(kernel_gradient(x, grad, stride, padding, kernel.shape[0]), want_kernel, 1e-5)


@pytest.mark.parametrize(
    ('shape', 'side', 'features', 'stride', 'padding'),
    [
        ((2, 8, 8, 3), 3, 4, 1, 1),
        ((2, 8, 8, 4), 3, 6, 2, 1),
        ((2, 7, 9, 4), 3, 6, 2, 1),
        ((2, 8, 8, 4), 1, 6, 1, 0),
        ((2, 8, 8, 4), 1, 6, 2, 0),
        ((2, 7, 7, 4), 1, 6, 2, 0),
        ((1, 14, 14, 3), 7, 4, 2, 3),
        ((1, 2, 2, 70), 3, 4, 1, 1),
        ((1, 4, 4, 70), 3, 4, 2, 1),
    ],
    ids=str,
)
def test_gradients_of_the_networks_convolutions(shape, side, features, stride, padding):
    x, kernel, grad = make_case(shape, side, features, stride, padding)
    check(x, kernel, grad, stride, padding)
    got = jax.jit(lambda *a: jax.vjp(lambda x, k: conv(x, k, stride, padding), *a[:2])[1](a[2]))(x, kernel, grad)
    for a, b in zip(got, reference(x, kernel, grad, stride, padding)[1:], strict=True):
        close(a, b, 1e-5)


@settings(max_examples=10)
@example(height=6, width=1, side=2, stride=2, padding=1)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    side=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
)
def test_gradients_of_any_geometry(height, width, side, stride, padding):
    padding = min(padding, side - 1)
    if min(height, width) + 2 * padding < side:
        return
    check(*make_case((1, height, width, 2), side, 3, stride, padding), stride, padding)


@pytest.mark.parametrize('stride', [1, 2])
def test_bfloat16_gradients(stride):
    x, kernel, grad = make_case((4, 8, 8, 4), 3, 4, stride, 1, jnp.bfloat16)
    got = jax.vjp(lambda x, k: conv(x, k, stride, 1), x, kernel)[1](grad)
    for a, b in zip(got, reference(x, kernel, grad, stride, 1)[1:], strict=True):
        assert a.dtype == jnp.bfloat16
        close(a, b, 2**-7)


def test_only_a_cpu_gets_these_gradients():
    x, kernel, _ = make_case((2, 8, 8, 4), 3, 4, 2, 1)

    def lowered(platform):
        gradient = jax.jit(jax.grad(lambda k, x: conv(x, k, 2, 1).sum()))
        return gradient.trace(kernel, x).lower(lowering_platforms=(platform,)).as_text()

    assert 'dot_general' in lowered('cpu')
    assert 'dot_general' not in lowered('tpu')
    assert 'optimization_barrier' not in lowered('tpu')


@pytest.mark.parametrize(
    ('shape', 'side', 'stride', 'padding'),
    [((2, 32, 30, 3), 7, 2, 3), ((2, 33, 31, 1), 7, 2, 3), ((2, 12, 13, 4), 5, 3, 2), ((2, 9, 8, 3), 3, 2, 1)],
)
def test_space_to_depth(shape, side, stride, padding):
    x, kernel, grad = make_case(shape, side, 6, stride, padding)
    out, pull = jax.vjp(lambda x, kernel: space_to_depth(x, kernel, stride, padding), x, kernel)
    for got, want in zip((out, *pull(grad)), reference(x, kernel, grad, stride, padding), strict=True):
        close(got, want, 1e-5)


@pytest.mark.parametrize('channels', [3, FEW_CHANNELS + 1])
def test_the_stem_of_accelerators(channels):
    """In a program for GPUs, only a strided convolution over few channels becomes a convolution over blocks."""
    x, kernel, _ = make_case((2, 16, 16, channels), 7, 8, 2, 3)
    traced = jax.jit(lambda x, kernel: conv(x, kernel, 2, 3)).trace(x, kernel)
    deep = f'tensor<4x4x{4 * channels}x8xf32>'
    assert (deep in traced.lower(lowering_platforms=('cuda',)).as_text()) == (channels <= FEW_CHANNELS)
    assert deep not in traced.lower(lowering_platforms=('cpu',)).as_text()


def test_precision_of_both_passes():
    """It is the precision of the call, even if the backward pass is traced under another one."""
    x, kernel, grad = make_case((2, 16, 16, 8), 3, 8, 1, 1)

    def gradients(x, kernel, grad):
        out, pull = jax.vjp(lambda x, kernel: conv(x, kernel, 1, 1, 'float32'), x, kernel)
        return out, pull(grad)

    text = jax.jit(gradients).trace(x, kernel, grad).lower(lowering_platforms=('cuda',)).as_text()
    products = [line for line in text.splitlines() if 'stablehlo.convolution' in line]
    assert len(products) == 3
    assert all('precision HIGHEST' in line for line in products)
