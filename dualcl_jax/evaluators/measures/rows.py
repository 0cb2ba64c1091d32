"""Rows of arrays: features of length 1, and the examples of each class."""

import numpy as np
from numpy.typing import NDArray


def unit(features: NDArray) -> NDArray:
    """Normalises rows [N, F] to length 1, in the floating-point dtype of `features`; a row of zeros remains zero."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(lengths.dtype).tiny)


def members(labels: NDArray, classes: NDArray) -> list[NDArray[np.int64]]:
    """The positions, ascending, of the examples of each of `classes` among integer labels [N]."""
    order = np.argsort(labels, kind='stable')
    ordered = labels[order]
    starts, ends = (np.searchsorted(ordered, classes, side) for side in ('left', 'right'))
    return [order[start:end] for start, end in zip(starts, ends, strict=True)]
