"""Range, mean and standard deviation of the values of a data set."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dualcl_jax.data.images.source import image_shape, image_type
from dualcl_jax.data.source import Source, limit_indices
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.kinds import IMAGES

STATISTICS_IMAGES = 4096
BLOCK_PIXELS = 2**22
"""Pixels that are measured at a time if they have up to `BLOCK_CHANNELS` channels, and proportionally fewer if more."""
BLOCK_CHANNELS = 4


def channel_statistics(
    source: Source, value_range: tuple[float, ...] = ()
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and standard deviation of each channel over all pixels of a source, in [0, 1].

    For images of 8 bits they are exact to four decimals. Otherwise they are exact to six digits, for the values as the
    encoder gets them: scaled from `value_range` to [0, 1] and clipped. If the images are not in memory, they are
    computed over `STATISTICS_IMAGES` images of a fixed random choice.
    """
    channels = image_shape(source)[2]
    if value_range:
        return _scaled_statistics(source, *value_range)
    totals, squares, count = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64), 0
    for block in _blocks(source):
        pixels = block.astype(np.uint32)
        totals += pixels.sum(axis=(0, 1, 2), dtype=np.uint64)
        squares += (pixels * pixels).sum(axis=(0, 1, 2), dtype=np.uint64)
        count += pixels[..., 0].size
    mean = totals / count
    std = np.sqrt(squares / count - mean**2)
    return tuple(round(float(m) / 255, 4) for m in mean), tuple(max(round(float(s) / 255, 4), 1e-4) for s in std)


def _scaled_statistics(source: Source, low: float, high: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    means, squares, sizes = [], [], []
    for block in _blocks(source):
        pixels = np.clip((block.astype(np.float64) - low) / (high - low), 0.0, 1.0)
        means.append(pixels.mean(axis=(0, 1, 2)))
        squares.append(np.square(pixels).mean(axis=(0, 1, 2)))
        sizes.append(len(block))
    mean, square = np.average(means, axis=0, weights=sizes), np.average(squares, axis=0, weights=sizes)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return tuple(float(f'{m:.6g}') for m in mean), tuple(max(float(f'{s:.6g}'), 1e-6) for s in std)


def values_in_use(data: Any, train: Source) -> tuple[float, ...]:
    """The values of images that become 0 and 1: `data.value_range`, or the range of the training images.

    Empty for images of 8 bits, whose values 0 and 255 become 0 and 1, and for other examples.

    Raises:
      UserError: `data.value_range` is given for such examples.
    """
    given = tuple(data.value_range)
    if train.kind == IMAGES and image_type(train) != 'uint8':
        return given or measured_range(train)
    if given:
        what = 'images of 8 bits, from 0 to 255' if train.kind == IMAGES else train.kind
        raise UserError(f'config.data.value_range={given}: {train.name} holds {what}; leave it empty')
    return ()


def measured_range(source: Source) -> tuple[float, float]:
    """The lowest and the highest value of the images of a source, or of as many as for `channel_statistics`.

    If all values are equal, the highest is raised by 1.
    """
    ends = [(block.min(), block.max()) for block in _blocks(source)]
    low, high = float(min(least for least, _ in ends)), float(max(most for _, most in ends))
    return low, high if high > low else low + 1.0


def _blocks(source: Source) -> Iterator[np.ndarray]:
    """Yields the images of a source that are measured, [n, H, W, C] at a time."""
    height, width, channels = image_shape(source)
    chosen = limit_indices(len(source), 0 if source.in_memory else STATISTICS_IMAGES)
    values = height * width * max(channels, BLOCK_CHANNELS)
    block = max(BLOCK_CHANNELS * BLOCK_PIXELS // values, 1)
    for start in range(0, len(chosen), block):
        yield source.examples(chosen[start : start + block])
