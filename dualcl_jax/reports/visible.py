"""Images of any number of channels and any type as pictures."""

import numpy as np
from numpy.typing import NDArray


def visible(images: NDArray, *, stretch: bool = True) -> NDArray[np.uint8]:
    """Images [..., H, W, C] as pictures uint8 [..., H, W, 1 or 3].

    Of more than three channels the first three are shown, of two the first. 8 bits stay as they are.

    Args:
      images: of any type.
      stretch: whether the values that are shown of an image, unless they have 8 bits, are stretched from the lowest to
        the highest; otherwise they are in [0, 1].
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
