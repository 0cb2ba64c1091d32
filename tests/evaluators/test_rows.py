"""The examples of each class are those of a search for each class."""

import numpy as np

from dualcl_jax.evaluators.measures.rows import members


def test_members() -> None:
    labels = np.random.default_rng(0).integers(-1, 9, 200).astype(np.int32)
    labels[labels == 4] = 5
    classes = np.array([0, 3, 4, 5, 8, 12])
    for label, rows in zip(classes, members(labels, classes), strict=True):
        np.testing.assert_array_equal(rows, np.flatnonzero(labels == label))
        assert rows.dtype == np.int64
