"""Confusions agree with scikit-learn's matrix, and cost as little with many classes as with few."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from dualcl_jax.reports.confusion import CONFUSIONS, MATRIX_CLASSES, confusion


def drawn(count: int, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, count).astype(np.int32)
    return labels, np.where(rng.random(count) < 0.6, labels, rng.choice(classes, count)).astype(np.int32)


@pytest.mark.parametrize('classes', [np.arange(4), np.array([0, 3, 7, 21_840])])
def test_a_matrix(classes: np.ndarray) -> None:
    labels, taken = drawn(300, classes)
    found, expected = confusion(labels, taken), confusion_matrix(labels, taken)
    assert found['examples'] == 300
    assert found['classes'] == classes.tolist()
    np.testing.assert_array_equal(found['counts'], expected)
    assert found['accuracy'] == pytest.approx(np.trace(expected) / 300)
    wrong = expected - np.diag(np.diag(expected))
    order = np.argsort(-wrong, axis=None, kind='stable')[:CONFUSIONS]  # of equal counts, the lower classes first
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    assert found['worst'] == [
        {'label': classes[row], 'taken': classes[column], 'count': wrong[row, column]} for row, column in pairs
    ]


def test_without_confusions() -> None:
    found = confusion(np.array([2, 5, 5]), np.array([2, 5, 5]))
    assert found['worst'] == []
    assert found['counts'] == [[1, 0], [0, 2]]


def test_memory_does_not_grow_with_the_classes() -> None:
    """One folder for each of 20,000 identities: a matrix of all classes would take 3.2 GB."""
    labels, taken = drawn(1000, np.arange(20_000))
    tracemalloc.start()
    found = confusion(labels, taken)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found['classes']) > MATRIX_CLASSES
    assert found['counts'] is None
    assert len(found['worst']) == CONFUSIONS
    assert peak < 2**20
