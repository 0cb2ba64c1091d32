"""The image input of an encoder: images of one size, standardised per channel."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """Prepares images for an encoder, which takes standardised float32 [n, size, size, C]. Hashable.

    Attributes:
      size: the side in pixels.
      channels: C.
      mean: the mean of each channel, or of all, in [0, 1]; a pixel enters the encoder as (pixel - mean) / std.
      std: the standard deviation of each channel, or of all.
      value_range: (low, high), the values that become 0 and 1, for images of 16 bits or floating point of any range;
        empty for images of 8 bits, or floats in [0, 1].
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape [size, size, C] of one image."""
        return self.size, self.size, self.channels

    def scaled(self, images: ArrayLike) -> jax.Array:
        """Converts images of any shape to float32 in [0, 1]: with `to_float`, or scaled from `value_range`, clipped."""
        images = jnp.asarray(images)
        if not self.value_range:
            return to_float(images)
        low, high = self.value_range
        return jnp.clip((images.astype(jnp.float32) - low) / (high - low), 0.0, 1.0)

    def pixels(self, images: ArrayLike) -> jax.Array:
        """Converts images [n, H, W, C] to float32 [n, size, size, C] in [0, 1]: `scaled`, then `resized`."""
        return resized(self.scaled(images), self.size, self.size)

    def standardize(self, pixels: jax.Array) -> jax.Array:
        """Standardises pixels [..., C] in [0, 1]: (pixels - mean) / std, float32."""
        shape = (1,) * (pixels.ndim - 1) + (-1,)
        mean, std = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def plain(self, examples: ArrayLike) -> jax.Array:
        """Prepares images [n, H, W, C] for the encoder without augmentation: `pixels`, standardised."""
        return self.standardize(self.pixels(examples))

    def blank(self) -> jax.Array:
        """A view [1, size, size, C] of zeros."""
        return jnp.zeros((1, *self.shape), jnp.float32)


def to_float(images: jax.Array) -> jax.Array:
    """Converts images of any shape to float32 in [0, 1].

    Raises:
      TypeError: the images are neither uint8 in [0, 255] nor floating point.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f'images are {images.dtype}: must be uint8 in [0, 255] or floating point in [0, 1]')
    return images.astype(jnp.float32)


def resized(images: ArrayLike, height: int, width: int) -> jax.Array:
    """Converts images [n, H, W, C], uint8 or floating point in [0, 1], to float32 [n, height, width, C] in [0, 1].

    Images of another size are resized bilinearly, without cropping.
    """
    pixels = to_float(jnp.asarray(images))
    shape = (pixels.shape[0], height, width, pixels.shape[3])
    return pixels if pixels.shape == shape else jax.image.resize(pixels, shape, 'linear')
