"""Common corruptions of images at five strengths (after 1903.12261).

Six of the kinds of corruption of CIFAR-10-C and ImageNet-C are available. The strengths are those of CIFAR-10-C for
images below 96 pixels and of ImageNet-C for larger ones. The implementation is our own, so that accuracies are close to
those on these sets, but not equal.
"""

import io
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from dualcl_jax.method.views import image_ops

STRENGTHS = (1, 2, 3, 4, 5)
SMALL_SIDE = 96
Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def noise(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise of standard deviation `amount`."""
    return image + amount * rng.standard_normal(image.shape, np.float32)


def contrast(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Scales the differences from each channel's mean by `amount`."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + amount * (image - mean)


def brightness(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Adds `amount` to the value in HSV, and keeps hue and saturation. Black becomes gray."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + np.float32(amount), 1)
    return np.where(value > 0, image * (brighter / np.where(value > 0, value, 1)), brighter)


def blur(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Applies a Gaussian blur of standard deviation `amount` pixels."""
    return np.asarray(_blur(image, np.float32(amount)))


def jpeg(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Stores the image as JPEG of quality `amount`."""
    file = io.BytesIO()
    _to_pillow(image).save(file, 'JPEG', quality=int(amount))
    return _from_pillow(Image.open(file))


def pixelate(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Reduces the image to `amount` times its size by averaging boxes, and enlarges it again."""
    height, width = image.shape[:2]
    small = max(int(width * amount), 1), max(int(height * amount), 1)
    box = Image.Resampling.BOX
    return _from_pillow(_to_pillow(image).resize(small, box).resize((width, height), box))


# For each, its function of an image float32 [H, W, C] in [0, 1], and its five amounts for small and for large images.
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...], tuple[float, ...]]] = {
    'noise': (noise, (0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),
    'blur': (blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    'contrast': (contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    'brightness': (brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    'jpeg': (jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    'pixelate': (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
}


def corrupt(images: np.ndarray, rows: np.ndarray, *, name: str, strength: int, seed: int) -> np.ndarray:
    """Corrupts images; the random numbers of each depend on its own row and not on the other images.

    Args:
      images: uint8 [n, H, W, C].
      rows: integers [n], the positions of the images in their set.
      name: a key of `CORRUPTIONS`.
      strength: from 1 to 5.
      seed: seed of the noise.

    Returns:
      The corrupted images, uint8 [n, H, W, C].
    """
    function, small, large = CORRUPTIONS[name]
    amount = (small if min(images.shape[1:3]) < SMALL_SIDE else large)[strength - 1]
    out = np.empty_like(images)
    for place, row in enumerate(rows.tolist()):
        rng = np.random.default_rng([seed, list(CORRUPTIONS).index(name), strength, row])
        changed = function(images[place].astype(np.float32) / 255, amount, rng)
        out[place] = _to_uint8(changed)
    return out


_blur = jax.jit(image_ops.gaussian_blur)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _to_pillow(image: np.ndarray) -> Image.Image:
    pixels = _to_uint8(image)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _from_pillow(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, np.float32) / 255
    return pixels[..., None] if pixels.ndim == 2 else pixels
