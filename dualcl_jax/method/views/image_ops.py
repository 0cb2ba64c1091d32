"""Operations on one image: crop, grayscale, colour, blur, solarize, flip; pure and deterministic in their parameters.

Images are float32 [H, W, C] in [0, 1] with C = 1 or 3. The HSV of the hue shift and the blends are torchvision's, on
float images; resizing is torchvision's and Pillow's antialiased bilinear resize of the crop; the blur is an exact
Gaussian, reflected at the edges. Pixels may differ from those of an 8-bit pipeline by its rounding.

The operations on colours take the channels as separate arrays, which one pass over the memory of a device can compute
together.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dualcl_jax.method.views.image_draws import Jitter

Planes = tuple[jax.Array, ...]
"""The channels of an image, each [H, W]."""
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def crop_and_resize(
    image: jax.Array, top: ArrayLike, left: ArrayLike, height: ArrayLike, width: ArrayLike, size: int
) -> jax.Array:
    """Resizes the box [top : top + height, left : left + width] of an image [H, W, C] to [size, size, C] in [0, 1].

    Antialiased bilinear: a triangle of half-width max(1, box / size) pixels about each output pixel's centre, over
    pixels of the box only, normalised. The box must lie inside the image and contain at least one pixel.

    Example:
      >>> image = jnp.array([[0.0, 1.0], [0.0, 1.0]])[..., None]
      >>> crop_and_resize(image, top=0, left=0, height=2, width=2, size=1)[..., 0].tolist()
      [[0.5]]
    """
    rows = _resize_weights(image.shape[0], top, height, size)
    columns = _resize_weights(image.shape[1], left, width, size)
    return jnp.clip(apply_separable(image, rows, columns), 0.0, 1.0)


def flip(image: jax.Array) -> jax.Array:
    """Mirrors an image [H, W, C] left to right.

    Example:
      >>> flip(jnp.array([[[0.0], [1.0]]]))[..., 0].tolist()
      [[1.0, 0.0]]
    """
    return image[:, ::-1]


def shift_hue(
    red: jax.Array, green: jax.Array, blue: jax.Array, shift: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shifts the hue in HSV by `shift` turns, of channels in [0, 1] of any shape.

    Example:
      >>> [float(channel) for channel in shift_hue(jnp.float32(1), jnp.float32(0), jnp.float32(0), 0.5)]
      [0.0, 1.0, 1.0]
    """
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
    sextant = jnp.where(
        value == red,
        (green - blue) * scale,
        jnp.where(value == green, 2.0 + (blue - red) * scale, 4.0 + (red - green) * scale),
    )
    sextant = sextant + 6.0 * jnp.asarray(shift, jnp.float32)

    def channel(offset: float) -> jax.Array:
        place = sextant + offset
        place = place - 6.0 * jnp.floor(place / 6.0)
        return value - chroma * jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0)

    return channel(5.0), channel(3.0), channel(1.0)


def gaussian_blur(image: jax.Array, sigma: ArrayLike) -> jax.Array:
    """Applies a Gaussian blur of standard deviation `sigma` > 0 pixels; [H, W, C].

    The taps reach up to the length of an axis minus one and are normalised. Past an edge, the image is mirrored about
    the edge pixel.

    Example:
      >>> blurred = gaussian_blur(jnp.array([[[0.0], [1.0], [0.0]]]), 0.5)
      >>> blurred.shape, bool(blurred.max() < 1.0)
      ((1, 3, 1), True)
    """
    return apply_separable(image, _blur_weights(image.shape[0], sigma), _blur_weights(image.shape[1], sigma))


def blur_and_flip(image: jax.Array, sigma: ArrayLike, blurred: ArrayLike, flipped: ArrayLike) -> jax.Array:
    """Applies `gaussian_blur` if `blurred` and `flip` if `flipped` to an image [S, S, C], both as one product.

    Example:
      >>> blur_and_flip(jnp.array([[[0.0], [1.0]]] * 2), 1.0, blurred=False, flipped=True)[0, :, 0].tolist()
      [1.0, 0.0]
    """
    size = image.shape[0]
    weights = jax.lax.platform_dependent(
        jnp.asarray(sigma, jnp.float32), cpu=partial(_blur_weights, size), default=partial(_blur_weights_at_once, size)
    )
    weights = jnp.where(blurred, weights, jnp.eye(size))
    return apply_separable(image, weights, jnp.where(flipped, weights[::-1], weights))


def color_jitter(planes: Planes, jitter: Jitter, applied: ArrayLike) -> Planes:
    """Applies the operations of `jitter` to the channels of an image in its order, clipping after each.

    There is one pass for each operation, a blend or the hue shift, whichever is due. If the jitter is not `applied`,
    all of them change nothing. Of images without red, green and blue, only brightness and contrast change.

    Example:
      >>> jitter = Jitter(jnp.float32(2.0), None, None, None, jnp.arange(4))
      >>> [plane.tolist() for plane in color_jitter((jnp.array([[0.25]]),), jitter, applied=True)]
      [[[0.5]]]
    """
    names = Jitter._fields[:4] if len(planes) == 3 else Jitter._fields[:2]
    position = dict(zip(Jitter._fields[:4], jitter.position, strict=True))
    values: dict[str, Any] = {name: getattr(jitter, name) for name in names if getattr(jitter, name) is not None}
    ranks = {name: jnp.sum(jnp.stack([position[other] < position[name] for other in values])) for name in values}
    means = _means(planes)
    for turn in range(len(values)):
        due = {name: applied & (rank == turn) for name, rank in ranks.items()}
        factor, towards = jnp.float32(1.0), (jnp.zeros_like(planes[0]),) * len(planes)
        for name, value in values.items():  # never a set, whose order differs between processes
            if name != 'hue':
                factor = jnp.where(due[name], value, factor)
        if 'contrast' in values:
            towards = tuple(jnp.where(due['contrast'], *both) for both in zip(means, towards, strict=True))
        if 'saturation' in values:
            brightness = luma(*planes)
            towards = tuple(jnp.where(due['saturation'], brightness, toward) for toward in towards)
        changed = tuple(blend(plane, toward, factor) for plane, toward in zip(planes, towards, strict=True))
        if 'hue' in values:
            red, green, blue = planes
            shifted = shift_hue(red, green, blue, values['hue'])
            changed = tuple(jnp.where(due['hue'], *both) for both in zip(shifted, changed, strict=True))
        # The barrier keeps XLA from recomputing a turn for every use in the next one. The means that the next contrast
        # needs are summed up by the pass that makes the pixels.
        planes, means = jax.lax.optimization_barrier((changed, _means(changed)))
    return planes


def _means(planes: Planes) -> Planes:
    """The value towards which contrast draws each channel: the mean luma of three channels, else the mean of each."""
    if len(planes) == 3:
        return (jnp.mean(luma(*planes)),) * 3
    return tuple(jnp.mean(plane) for plane in planes)


def solarize(image: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Inverts the values at or above `threshold`; [H, W, C] in [0, 1].

    Example:
      >>> solarize(jnp.array([[[0.25], [0.75]]]), 0.5)[..., 0].tolist()
      [[0.25, 0.25]]
    """
    return jnp.where(image >= threshold, 1.0 - image, image)


def luma(red: jax.Array, green: jax.Array, blue: jax.Array) -> jax.Array:
    """The luma .2989 R + .587 G + .114 B, of channels of any shape.

    Example:
      >>> round(float(luma(jnp.float32(0), jnp.float32(1), jnp.float32(0))), 3)
      0.587
    """
    weights = GRAY_WEIGHTS
    return weights[0] * red + weights[1] * green + weights[2] * blue


def blend(image: jax.Array, toward: ArrayLike, factor: ArrayLike) -> jax.Array:
    """factor · image + (1 - factor) · toward, clipped to [0, 1]; `toward` broadcasts to the image.

    Example:
      >>> blend(jnp.array([[[1.0]]]), 0.0, 0.25).tolist()
      [[[0.25]]]
    """
    return jnp.clip(factor * image + (1.0 - factor) * toward, 0.0, 1.0)


def _resize_weights(pixels: int, start: ArrayLike, length: ArrayLike, size: int) -> jax.Array:
    """Weights [size, pixels] of the pixels of an axis in each output pixel, for the box [start, start + length)."""
    start, length = jnp.asarray(start, jnp.float32), jnp.asarray(length, jnp.float32)
    step = length / size
    centre = (jnp.arange(size, dtype=jnp.float32)[:, None] + 0.5) * step
    place = jnp.arange(pixels, dtype=jnp.float32)[None, :] - start + 0.5
    triangle = jnp.maximum(0.0, 1.0 - jnp.abs(place - centre) / jnp.maximum(step, 1.0))
    weights = jnp.where((place > 0) & (place < length), triangle, 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _blur_weights(pixels: int, sigma: ArrayLike) -> jax.Array:
    """Weights [pixels, pixels]: a Gaussian about each output pixel, with the taps beyond the edges folded back inside.

    Each tap is computed once and then placed, so that its bits do not depend on XLA's fusion and hence on the batch.
    """
    taps = jnp.exp(-0.5 * jnp.square(jnp.arange(pixels, dtype=jnp.float32) / sigma))

    def diagonals(values: jax.Array) -> jax.Array:
        """Repeats values [2 · pixels - 1] as [pixels, 2 · pixels - 1], each row shifted one further to the right."""
        rows = jnp.broadcast_to(jnp.append(values, 0.0), (pixels, 2 * pixels))
        return rows.reshape(-1)[:-pixels].reshape(pixels, 2 * pixels - 1)

    inside = diagonals(jnp.concatenate([taps[:0:-1], taps]))[:, pixels - 1 :]
    mirrored = diagonals(jnp.append(taps[::-1], jnp.zeros(pixels - 1)))[:, : pixels - 1][:, ::-1]
    before = jnp.pad(mirrored, ((0, 0), (1, 0)))  # the edge pixel is not mirrored
    weights = before + inside + before[::-1, ::-1]
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _blur_weights_at_once(pixels: int, sigma: jax.Array) -> jax.Array:
    """The weights of `_blur_weights` in one pass: a TPU takes 1.6 times the cycles for views whose taps are placed."""
    output, pixel = jnp.arange(pixels)[:, None], jnp.arange(pixels)[None, :]

    def tap(distance: jax.Array) -> jax.Array:
        return jnp.where(distance < pixels, jnp.exp(-0.5 * jnp.square(distance.astype(jnp.float32) / sigma)), 0.0)

    before = jnp.where(pixel > 0, tap(output + pixel), 0.0)  # mirrored; the edge pixel is not
    after = jnp.where(pixel < pixels - 1, tap(2 * (pixels - 1) - output - pixel), 0.0)
    weights = before + tap(jnp.abs(output - pixel)) + after
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def apply_separable(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies `rows` [O, H] and `columns` [P, W] to [H, W, C], in full float32; returns [O, P, C].

    Example:
      >>> image = jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None]
      >>> apply_separable(image, jnp.full((1, 2), 0.5), jnp.eye(2)[::-1])[..., 0].tolist()  # means of reversed columns
      [[3.0, 2.0]]
    """
    image = jnp.einsum('oh,hwc->owc', rows, image, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum('pw,owc->opc', columns, image, precision=jax.lax.Precision.HIGHEST)
