"""Sources of images: arrays [n, H, W, C] of one of `TYPES`, all of one size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualcl_jax.data.source import ArraySource, Source, example_spec
from dualcl_jax.system.kinds import IMAGES

TYPES = ('uint8', 'uint16', 'float32')
"""The types of pixels: 8 bits, 16 bits, and floating point of any range."""


def image_source(
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...] | None = None,
    fingerprint: str = '',
    report: Mapping[str, Any] | None = None,
    files: Sequence[str] | None = None,
) -> ArraySource:
    """A split of images in memory: pixels [N, H, W, C] of one of `TYPES`, and their `files` [N], if any.

    For the other arguments see `ArraySource`.

    Raises:
      ValueError: pixels or labels of another shape or type.
    """
    if pixels.dtype.name not in TYPES or pixels.ndim != 4:
        raise ValueError(f'pixels: expected [N, H, W, C] of {", ".join(TYPES)}, got {pixels.dtype} {pixels.shape}')
    return ArraySource(name, pixels, labels, class_names, fingerprint, report, kind=IMAGES, texts=files)


def is_photographic(dtype: str, channels: int) -> bool:
    """Whether images have 8 bits and are gray or RGB: what is read, shown and corrupted without `data.channels`.

    Example:
      >>> is_photographic('uint8', 3), is_photographic('uint16', 3), is_photographic('uint8', 5)
      (True, False, False)
    """
    return dtype == 'uint8' and channels in (1, 3)


def image_shape(source: Source) -> tuple[int, int, int]:
    """(H, W, C) of the images of a source.

    Raises:
      ValueError: its examples are not images.
    """
    if source.kind != IMAGES:
        raise ValueError(f'{source.name}: expected {IMAGES}, got {source.kind}')
    height, width, channels = example_spec(source).shape
    return height, width, channels


def image_type(source: Source) -> str:
    """The type of the images of a source, one of `TYPES`."""
    return str(example_spec(source).dtype.name)
