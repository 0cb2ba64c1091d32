"""The examples of each class, found in one pass however many classes there are."""

import numpy as np
from numpy.typing import NDArray


def members(labels: NDArray, classes: NDArray) -> list[NDArray[np.int64]]:
    """The positions, ascending, of the examples of each of `classes` among integer labels [N]."""
    order = np.argsort(labels, kind='stable')
    ordered = labels[order]
    starts, ends = (np.searchsorted(ordered, classes, side) for side in ('left', 'right'))
    return [order[start:end] for start, end in zip(starts, ends, strict=True)]
