"""Random parameters of image operations: draws of the crop and the colour jitter, distributed as in torchvision.

Every function maps uniform numbers in [0, 1) to parameters and is deterministic.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

CROP_TRIES = 10
CROP_DRAWS, JITTER_DRAWS = 2 * CROP_TRIES + 2, 8


class Crop(NamedTuple):
    """A box in whole pixels; int32 scalars."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


class Jitter(NamedTuple):
    """The parameters of one colour jitter; None omits an operation.

    Attributes:
      brightness, contrast, saturation: factors, float32 scalars.
      hue: a shift in turns of the colour circle, a float32 scalar.
      position: int32 [4], a permutation of 0 to 3: the turn of each of (brightness, contrast, saturation, hue).
    """

    brightness: jax.Array | None
    contrast: jax.Array | None
    saturation: jax.Array | None
    hue: jax.Array | None
    position: jax.Array


class ViewParameters(NamedTuple):
    """All random parameters of one view.

    Attributes:
      crop: None if the image is already the crop.
      jitter: the parameters of the colour jitter.
      sigma: the standard deviation of the blur, in pixels.
      applied: whether each operation of `images.PROBABILITIES` is applied, a bool scalar.
    """

    crop: Crop | None
    jitter: Jitter
    sigma: jax.Array
    applied: dict[str, jax.Array]


def draw_crop(
    draws: jax.Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Crop:
    """Draws the crop of a [height, width] image, distributed as in torchvision's `RandomResizedCrop.get_params`.

    Ten attempts draw an area (a share of the image's, uniform in `scale`) and an aspect ratio (log-uniform in `ratio`),
    rounded to whole pixels; the first box that fits is placed uniformly. If none fits, the crop is the largest central
    box of an allowed ratio. `draws` are float32 [CROP_DRAWS], uniform in [0, 1).

    Example:
      >>> crop = draw_crop(jax.random.uniform(jax.random.key(0), (CROP_DRAWS,)), 32, 32, (1.0, 1.0), (1.0, 1.0))
      >>> [int(value) for value in crop]
      [0, 0, 32, 32]
    """
    areas = height * width * between(draws[:CROP_TRIES], *scale)
    ratios = jnp.exp(between(draws[CROP_TRIES : 2 * CROP_TRIES], math.log(ratio[0]), math.log(ratio[1])))
    widths = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, found = jnp.argmax(fits), jnp.any(fits)

    central_height, central_width = height, width
    if width / height < ratio[0]:
        central_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        central_width = round(height * ratio[1])

    def place(draw: jax.Array, room: jax.Array) -> jax.Array:
        anywhere = jnp.floor(draw * (room + 1).astype(jnp.float32)).astype(jnp.int32)
        return jnp.where(found, anywhere, room // 2)

    crop_height = jnp.where(found, heights[first], central_height)
    crop_width = jnp.where(found, widths[first], central_width)
    top, left = place(draws[-2], height - crop_height), place(draws[-1], width - crop_width)
    return Crop(top, left, crop_height, crop_width)


def draw_jitter(draws: jax.Array, brightness: float, contrast: float, saturation: float, hue: float) -> Jitter:
    """Draws factors for the strengths (see `ViewSpec`; 0 gives None) and an order, from `draws` [JITTER_DRAWS].

    Example:
      >>> jitter = draw_jitter(jnp.full((JITTER_DRAWS,), 0.5), brightness=0.4, contrast=0.0, saturation=0.0, hue=0.0)
      >>> float(jitter.brightness), jitter.contrast
      (1.0, None)
    """

    def factor(draw: jax.Array, strength: float) -> jax.Array | None:
        return between(draw, max(0.0, 1.0 - strength), 1.0 + strength) if strength else None

    return Jitter(
        factor(draws[0], brightness),
        factor(draws[1], contrast),
        factor(draws[2], saturation),
        between(draws[3], -hue, hue) if hue else None,
        jnp.argsort(draws[4:]).astype(jnp.int32),
    )


def between(draw: jax.Array, low: float, high: float) -> jax.Array:
    """Maps uniform draws in [0, 1) to [low, high).

    Example:
      >>> float(between(jnp.array(0.5), 2.0, 4.0))
      3.0
    """
    return low + (high - low) * draw
