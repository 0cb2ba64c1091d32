"""Features of length 1, in NumPy."""

import numpy as np
from numpy.typing import NDArray


def unit(features: NDArray) -> NDArray:
    """Normalises rows [N, F] to length 1, in the floating-point dtype of `features`; a row of zeros remains zero."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(lengths.dtype).tiny)
