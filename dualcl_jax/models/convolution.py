"""Convolution with gradients that run fast on a CPU, and a stem that runs fast on accelerators.

On a CPU, XLA computes the gradient of the kernel as a convolution over transposed copies of both arrays, and the
gradient of the input of a strided convolution as one over interleaved zeros. Here both have forms that XLA's
libraries run fast: one matrix product, and plain convolutions with stride 1.

The gradient of a 3×3 kernel at batch 256 was measured with jax 0.12 and the flags of
`dualcl_jax.system.processes.start`, with freed memory kept, on one core of a Xeon with AVX-512 that other programs
shared. In float32 it takes 31 ms, and XLA's own gradient 70 ms (32×32 positions, 16 channels). The other pairs of times
are 19 and 42 ms (16×16, 32), 13 and 30 ms (8×8, 64), and 9.5 and 11 ms (4×4, 128).
In bfloat16 at batch 128, on a Xeon with AMX, it takes 66 ms of CPU time. XLA's own gradient, a convolution of oneDNN
with a window of the whole map, takes 287 ms (32×32, 64). The other pairs are 45 and 80 ms (16×16, 128), 46 and 79 ms
(8×8, 256), 43 and 72 ms (4×4, 512), 9 and 17 ms (32×32, 16), and 5 and 6 ms (16×16, 32).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
FEW_CHANNELS = 4
"""With at most this many channels, a strided convolution runs as `space_to_depth` on accelerators."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int, precision: str | None = None) -> jax.Array:
    """Computes a two-dimensional convolution (cross-correlation) with equal zero padding on all sides, as in PyTorch.

    Only reverse-mode differentiation is supported. The gradients differ from those of `jax.lax.conv_general_dilated`
    only by rounding.

    Args:
      x: [N, H, W, I].
      kernel: [K, K, I, O], of the dtype of x.
      stride: step in both directions, at least 1.
      padding: zeros added on each side of H and of W, less than K.
      precision: the precision of the products, forward and backward, as for `jax.default_matmul_precision`.

    Returns:
      [N, (H + 2 * padding - K) // stride + 1, (W + 2 * padding - K) // stride + 1, O], the dtype of x.
    """
    return _forward(x, kernel, stride, padding, precision)[0]


def _plain(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _convolve(x, kernel, stride, ((padding, padding), (padding, padding)))


def _few_channels(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    return x.shape[3] <= FEW_CHANNELS and kernel.shape[0] > stride > 1


def space_to_depth(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Computes `conv` as a convolution with stride 1, where a block of stride × stride positions becomes one position.

    Matrix units multiply many channels at a time, but an image has only three. The sums have the same terms, reordered.
    """
    n, height, width, channels = x.shape
    side, features = kernel.shape[0], kernel.shape[3]
    taps = -(-side // stride)
    rows, columns = ((size + 2 * padding - side) // stride + taps for size in (height, width))
    x = _pad(x, (padding, rows * stride - padding - height), (padding, columns * stride - padding - width))
    x = x.reshape(n, rows, stride, columns, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    kernel = jnp.pad(kernel, ((0, taps * stride - side),) * 2 + ((0, 0),) * 2)
    kernel = kernel.reshape(taps, stride, taps, stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
    depth = stride * stride * channels
    x, kernel = x.reshape(n, rows, columns, depth), kernel.reshape(taps, taps, depth, features)
    return _convolve(x, kernel, 1, ((0, 0), (0, 0)))


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Convolves with `pads` zeros around height and width; negative numbers crop."""
    if any(size < side for size, side in zip(x.shape[1:3], kernel.shape[:2], strict=True)):
        # For 256 maps of 2x2 with 128 channels, smaller than the kernel, XLA:CPU takes 49 ms; padded before, 3 ms.
        x, pads = jax.lax.optimization_barrier(_pad(x, *pads)), ((0, 0), (0, 0))
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, precision: str | None
) -> tuple[jax.Array, tuple]:
    with jax.default_matmul_precision(precision):
        if _few_channels(x, kernel, stride):
            plain = partial(_plain, stride=stride, padding=padding)
            deep = partial(space_to_depth, stride=stride, padding=padding)
            return jax.lax.platform_dependent(x, kernel, cpu=plain, default=deep), (x, kernel)
        return _plain(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: int, precision: str | None, saved: tuple, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def on_cpu(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Without the barrier XLA computes the surrounding layers again for every copy of x and grad below.
        x, grad = jax.lax.optimization_barrier((x, grad))
        for_x = input_gradient(grad, kernel, stride, padding, x.shape[1:3])
        return for_x, kernel_gradient(x, grad, stride, padding, kernel.shape[0])

    def elsewhere(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        forward = space_to_depth if _few_channels(x, kernel, stride) else _plain
        return jax.vjp(lambda x, k: forward(x, k, stride, padding), x, kernel)[1](grad)

    with jax.default_matmul_precision(precision):
        return jax.lax.platform_dependent(*saved, grad, cpu=on_cpu, default=elsewhere)


conv.defvjp(_forward, _backward)


class _Phase(NamedTuple):
    """The rows (or columns) of the input with one remainder modulo the stride.

    Attributes:
      taps: the taps of the kernel that apply to them.
      pad: how many zeros surround the gradient of the output.
      place: the padding that interleaves them: before, after, and between two of them.
    """

    taps: list[int]
    pad: tuple[int, int]
    place: tuple[int, int, int]


def _phases(size: int, out: int, side: int, stride: int, padding: int) -> list[_Phase]:
    """Groups the input rows by their remainder r modulo the stride.

    Tap k applies input row r + a * stride to output row a + (r + padding - k) / stride, if the division is exact.
    """
    phases = []
    for r in range(min(stride, size)):
        taps = [k for k in reversed(range(side)) if (r + padding - k) % stride == 0]
        if not taps:
            continue
        count = (size - r - 1) // stride + 1
        before = (taps[0] - r - padding) // stride
        after = count + len(taps) - 1 - out - before
        phases.append(_Phase(taps, (before, after), (r, size - r - (count - 1) * stride - 1, stride - 1)))
    return phases


def input_gradient(grad: jax.Array, kernel: jax.Array, stride: int, padding: int, size: Sequence[int]) -> jax.Array:
    """Computes the input's gradient [N, H, W, I], of height and width `size`, from the output's gradient [N, h, w, O].

    The same taps of the kernel apply to all input rows with the same remainder modulo the stride, and likewise for
    columns. So each pair of remainders is a convolution of `grad` with stride 1, and the results are interleaved.
    """
    rows = _phases(size[0], grad.shape[1], kernel.shape[0], stride, padding)
    columns = _phases(size[1], grad.shape[2], kernel.shape[1], stride, padding)
    total = jnp.zeros((grad.shape[0], *size, kernel.shape[2]), grad.dtype)
    for row in rows:
        for column in columns:
            # This gathers tap by tap: XLA would fold a reversed kernel into a convolution that oneDNN does not support.
            taps = jnp.stack([jnp.stack([kernel[r, c].T for c in column.taps]) for r in row.taps])
            part = _convolve(grad, taps, 1, (row.pad, column.pad))
            if stride == 1:
                return part
            part = jax.lax.optimization_barrier(part)
            total += jax.lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), row.place, column.place, (0, 0, 0)))
    return total


def kernel_gradient(x: jax.Array, grad: jax.Array, stride: int, padding: int, side: int) -> jax.Array:
    """Computes the kernel's gradient [side, side, I, O] from x [N, H, W, I] and the output's gradient [N, h, w, O].

    With stride 1 it is the sum over positions of x[row + i, column] * grad[row, column - j]. One matrix product
    computes it from copies of x shifted by rows, side by side, and copies of `grad` shifted by columns. With stride s,
    s adjacent columns of x count as the channels of one column.
    """
    n, height, width, channels = x.shape
    _, rows, columns, features = grad.shape
    if side == 1 and padding == 0:
        return _product(x[:, ::stride, ::stride], grad)[None, None]
    groups = -(-width // stride)
    x = _pad(x, (0, 0), (0, groups * stride - width)).reshape(n, height, groups, stride * channels)
    shifted = []
    for i in range(side):
        shifted.append(_pad(x, (padding - i, stride * rows - height - padding + i), (0, 0))[:, ::stride])
    # At place b, column group a + t holds the input to which tap padding + stride * t + b applies for output column a.
    first, last = -((stride - 1 + padding) // stride), (side - 1 - padding) // stride
    moved = [_pad(grad, (0, 0), (t, groups - columns - t)) for t in range(first, last + 1)]
    product = _product(_side_by_side(shifted), _side_by_side(moved))
    product = product.reshape(side, stride, channels, len(moved), features).transpose(0, 3, 1, 2, 4)
    start = -(padding + stride * first)
    return product.reshape(side, len(moved) * stride, channels, features)[:, start : start + side]


def _pad(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """Pads [N, H, W, C] with zeros; negative numbers crop."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _side_by_side(parts: list[jax.Array]) -> jax.Array:
    """Concatenates along the channels, as a sum of padded arrays, which XLA:CPU runs four times faster.

    Numbers of bfloat16 are added as integers, since XLA:CPU would convert them to float32 and back.
    """
    dtype, channels = parts[0].dtype, parts[0].shape[-1]
    if dtype == jnp.bfloat16:
        parts = [jax.lax.bitcast_convert_type(part, jnp.uint16) for part in parts]
    total = jnp.zeros((*parts[0].shape[:-1], len(parts) * channels), parts[0].dtype)
    for i, part in enumerate(parts):
        place = (i * channels, (len(parts) - 1 - i) * channels, 0)
        total += jax.lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), (0, 0, 0), (0, 0, 0), place))
    return jax.lax.bitcast_convert_type(total, dtype) if dtype == jnp.bfloat16 else total


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums the outer product of [..., A] and [..., B] over all positions: [A, B]."""
    return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])
