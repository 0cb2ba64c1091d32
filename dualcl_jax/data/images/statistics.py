"""Mean and standard deviation of the channels of a data set."""

import numpy as np

from dualcl_jax.data.images.source import image_shape
from dualcl_jax.data.source import Source, limit_indices

STATISTICS_IMAGES = 4096
BLOCK_PIXELS = 2**22


def channel_statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of a source, in [0, 1], exact to four decimals.

    Where the images are not in memory, over `STATISTICS_IMAGES` images of a fixed random choice.
    """
    height, width, channels = image_shape(source)
    chosen = limit_indices(len(source), 0 if source.in_memory else STATISTICS_IMAGES)
    block = max(BLOCK_PIXELS // (height * width), 1)
    totals, squares, count = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64), 0
    for start in range(0, len(chosen), block):
        pixels = source.examples(chosen[start : start + block]).astype(np.uint32)
        totals += pixels.sum(axis=(0, 1, 2), dtype=np.uint64)
        squares += (pixels * pixels).sum(axis=(0, 1, 2), dtype=np.uint64)
        count += pixels[..., 0].size
    mean = totals / count
    std = np.sqrt(squares / count - mean**2)
    return tuple(round(float(m) / 255, 4) for m in mean), tuple(max(round(float(s) / 255, 4), 1e-4) for s in std)
