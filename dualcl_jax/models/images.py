"""Images as an encoder takes them: of one size, standardised per channel."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """What an encoder takes: images float32 [n, size, size, C], standardised. Hashable.

    Attributes:
      size: side in pixels.
      channels: C, 1 or 3.
      mean, std: for each channel, or one for all, in [0, 1]; a pixel enters the encoder as (pixel - mean) / std.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[size, size, C] of one image."""
        return self.size, self.size, self.channels

    def pixels(self, images: ArrayLike) -> jax.Array:
        """Images [n, H, W, C] as float32 [n, size, size, C] in [0, 1]: `resized`."""
        return resized(images, self.size, self.size)

    def standardize(self, pixels: jax.Array) -> jax.Array:
        """(pixels - mean) / std of pixels in [0, 1], float32 [..., C]."""
        shape = (1,) * (pixels.ndim - 1) + (-1,)
        mean, std = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def plain(self, examples: ArrayLike) -> jax.Array:
        """Images [n, H, W, C] as the encoder takes them, without augmentation: `pixels`, standardised."""
        return self.standardize(self.pixels(examples))

    def blank(self) -> jax.Array:
        """One view [1, size, size, C] of zeros."""
        return jnp.zeros((1, *self.shape), jnp.float32)


def to_float(images: jax.Array) -> jax.Array:
    """Images in [0, 1] as float32, of any shape.

    Raises:
      TypeError: they are neither uint8 in [0, 255] nor floating point.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f'images are {images.dtype}: need uint8 in [0, 255] or floating point in [0, 1]')
    return images.astype(jnp.float32)


def resized(images: ArrayLike, height: int, width: int) -> jax.Array:
    """Images [n, H, W, C], uint8 or floating point in [0, 1], as float32 [n, height, width, C] in [0, 1].

    Images of another size are resized bilinearly, without a crop.
    """
    pixels = to_float(jnp.asarray(images))
    shape = (pixels.shape[0], height, width, pixels.shape[3])
    return pixels if pixels.shape == shape else jax.image.resize(pixels, shape, 'linear')
