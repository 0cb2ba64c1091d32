"""Converts images of any number of channels and any type to pictures."""

import numpy as np
from numpy.typing import NDArray


def visible(images: NDArray, *, stretch: bool = True) -> NDArray[np.uint8]:
    """Converts images [..., H, W, C] to pictures uint8 [..., H, W, 1 or 3].

    If there are more than three channels, the first three are shown; if there are two, the first. Images with 8 bits
    remain as they are.

    Args:
      images: of any type.
      stretch: whether the values shown of an image, unless they have 8 bits, are stretched so that the lowest and the
        highest span [0, 1]; otherwise they are in [0, 1].
    """
    channels = images.shape[-1]
    images = images[..., :3] if channels > 3 else images[..., :1] if channels == 2 else images
    if images.dtype == np.uint8:
        return images
    values: NDArray = np.nan_to_num(images.astype(np.float32))
    if stretch:
        low, high = (end(values, axis=(-3, -2, -1), keepdims=True) for end in (np.min, np.max))
        values = (values - low) / np.where(high > low, high - low, np.float32(1))
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
