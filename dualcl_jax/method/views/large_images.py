"""Views of large images: computes `images.apply_view` in fewer passes over the memory of a device.

The results are the same up to rounding. `apply_view` takes a pass for every operation, on either side of the hue shift.
Small images still use it, so that the bits of their runs do not change. Here

- all views are one batch, with the parameters of each, so that nothing is cut out of the batch or stacked;
- the channels are separate arrays, which a pass over all of them can compute together;
- the colour jitter takes one pass for each operation, the hue shift or a blend, whichever is due;
- the means that the next contrast needs are summed up by the pass that makes the pixels;
- an image without blur has the identity as its blur, and a flipped one has the rows of the blur in reverse.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dualcl_jax.method.views.image_draws import Jitter, ViewParameters
from dualcl_jax.method.views.image_ops import (
    apply_separable,
    blend,
    crop_and_resize,
    flip,
    luma,
    shift_hue,
    solarize,
)
from dualcl_jax.models.images import to_float

LARGE = 160
"""Views of at least this many pixels a side are large."""
Planes = tuple[jax.Array, ...]
"""The channels of an image, each [H, W]."""
NEUTRAL = {'brightness': 1.0, 'contrast': 1.0, 'saturation': 1.0, 'hue': 0.0}
"""The parameters with which an operation of the colour jitter changes nothing."""


def apply_views(
    images: jax.Array,
    parameters: Sequence[ViewParameters],
    *,
    used: Collection[str],
    gray_first: Sequence[bool],
    thresholds: Sequence[float],
    size: int,
) -> jax.Array:
    """Computes all views of a batch: float32 [V, B, size, size, C] in [0, 1].

    Args:
      images: [B, H, W, C], or crops [B, V, size, size, C] if the parameters have no crop; uint8 or float in [0, 1].
      parameters: for each view the parameters of B images, see `images.draw_view`.
      used: the names in `ViewParameters.applied` of the operations that any view has.
      gray_first, thresholds: `grayscale_first` and `solarize_threshold` of each view, see `images.ViewSpec`.
      size: side of the views.
    """
    cropped = parameters[0].crop is None
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *_with_all_operations(parameters))
    stacked = jax.lax.optimization_barrier(stacked)  # otherwise XLA draws them again for every pixel

    def one(image: jax.Array, drawn: ViewParameters, gray_first: jax.Array, threshold: jax.Array) -> jax.Array:
        return _apply_view(to_float(image), drawn, used, gray_first, threshold, size)

    batch = jax.vmap(one, (0, 0, None, None))
    views = jax.vmap(batch, (1 if cropped else None, 0, 0, 0))
    return views(images, stacked, jnp.array(gray_first), jnp.array(thresholds, jnp.float32))


def _with_all_operations(parameters: Sequence[ViewParameters]) -> list[ViewParameters]:
    """Fills in neutral values for the operations of the jitter that only other views have."""
    filled = [drawn.jitter._asdict() for drawn in parameters]
    for name, neutral in NEUTRAL.items():
        if any(jitter[name] is not None for jitter in filled):
            for jitter in filled:
                if jitter[name] is None:
                    jitter[name] = jnp.full(jitter['position'].shape[:1], neutral, jnp.float32)
    return [drawn._replace(jitter=Jitter(**jitter)) for drawn, jitter in zip(parameters, filled, strict=True)]


def _apply_view(
    image: jax.Array,
    drawn: ViewParameters,
    used: Collection[str],
    gray_first: jax.Array,
    threshold: jax.Array,
    size: int,
) -> jax.Array:
    """Computes one view of one image [H, W, C]; `used` names the operations that any view has."""
    applied = drawn.applied
    if drawn.crop is not None:
        image = crop_and_resize(image, *drawn.crop, size)
    planes: Planes = tuple(image[..., channel] for channel in range(image.shape[-1]))
    has_grayscale = 'grayscale' in used and len(planes) == 3
    if has_grayscale:
        planes = _to_grayscale(planes, applied['grayscale'] & gray_first)
    if 'jitter_probability' in used:
        planes = _color_jitter(planes, drawn.jitter, applied['jitter_probability'])
    if has_grayscale:
        planes = _to_grayscale(planes, applied['grayscale'] & ~gray_first)
    image = jnp.stack(planes, axis=-1)
    flips = applied['flip'] if 'flip' in used else jnp.bool_(False)
    if 'blur_probability' in used:
        rows, columns = (
            _blur_weights(size, drawn.sigma, applied['blur_probability'], reverse)
            for reverse in (jnp.bool_(False), flips)
        )
        image = apply_separable(image, rows, columns)
    elif 'flip' in used:
        image = jnp.where(flips, flip(image), image)
    if 'solarize_probability' in used:
        image = jnp.where(applied['solarize_probability'], solarize(image, threshold), image)
    return jnp.clip(image, 0.0, 1.0)


def _to_grayscale(planes: Planes, applied: jax.Array) -> Planes:
    brightness = luma(*planes)
    return tuple(jnp.where(applied, brightness, plane) for plane in planes)


def _means(planes: Planes) -> Planes:
    """The value towards which contrast draws each channel: the mean luma of three channels, else the mean of each."""
    if len(planes) == 3:
        return (jnp.mean(luma(*planes)),) * 3
    return tuple(jnp.mean(plane) for plane in planes)


def _color_jitter(planes: Planes, jitter: Jitter, applied: jax.Array) -> Planes:
    """Applies the operations of `jitter` in its order, clipping after each; all are neutral if it is not applied."""
    is_color = len(planes) == 3
    names = Jitter._fields[:4] if is_color else Jitter._fields[:2]
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
        # The barrier keeps XLA from recomputing a turn for every use in the next one.
        planes, means = jax.lax.optimization_barrier((changed, _means(changed)))
    return planes


def _blur_weights(pixels: int, sigma: jax.Array, applied: jax.Array, reverse: jax.Array) -> jax.Array:
    """The weights [pixels, pixels] of `image_ops.gaussian_blur`, or the identity; rows in reverse if `reverse`."""
    output, pixel = jnp.arange(pixels)[:, None], jnp.arange(pixels)[None, :]
    output = jnp.where(reverse, pixels - 1 - output, output)

    def tap(distance: jax.Array) -> jax.Array:
        return jnp.where(distance < pixels, jnp.exp(-0.5 * jnp.square(distance.astype(jnp.float32) / sigma)), 0.0)

    before = jnp.where(pixel > 0, tap(output + pixel), 0.0)  # mirrored; the edge pixel is not
    after = jnp.where(pixel < pixels - 1, tap(2 * (pixels - 1) - output - pixel), 0.0)
    weights = before + tap(jnp.abs(output - pixel)) + after
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    return jnp.where(applied, weights, (output == pixel).astype(jnp.float32))
