"""Which classes are taken for which others. Time and memory depend on the examples, not on the number of classes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MATRIX_CLASSES = 30
"""The most classes for which a confusion matrix is drawn."""
CONFUSIONS = 8


def confusion(labels: NDArray, predictions: NDArray) -> dict[str, Any]:
    """Counts how often examples of one class are predicted as another.

    Args:
      labels: the classes of the examples, integers [n] from 0, with n at least 1.
      predictions: what they were predicted as, integers [n] from 0.

    Returns:
      `examples` and `accuracy`; `classes`, those that occur in either array, in ascending order; `counts`, the matrix
      of these classes with a row for each label, or None if it is not drawn; and `worst`, the most frequent confusions.
    """
    classes, places = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    rows, columns = places.reshape(2, -1)
    pairs, times = np.unique(rows * len(classes) + columns, return_counts=True)
    rows, columns = np.divmod(pairs, len(classes))
    counts = None
    if len(classes) <= MATRIX_CLASSES:
        counts = np.zeros((len(classes), len(classes)), np.int64)
        counts[rows, columns] = times
    wrong = np.flatnonzero(rows != columns)
    worst = wrong[np.argsort(-times[wrong], kind='stable')[:CONFUSIONS]]
    return {
        'examples': len(labels),
        'accuracy': float((labels == predictions).mean()),
        'classes': classes.tolist(),
        'counts': None if counts is None else counts.tolist(),
        'worst': [
            {'label': int(classes[rows[at]]), 'taken': int(classes[columns[at]]), 'count': int(times[at])}
            for at in worst
        ],
    }
