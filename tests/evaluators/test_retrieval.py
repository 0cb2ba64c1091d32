import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from dualcl_jax.evaluators.measures import retrieval
from dualcl_jax.evaluators.measures.knn import nearest
from dualcl_jax.evaluators.measures.retrieval import retrieval_blocks, retrieve


def draw(seed, count, features=6, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count).astype(np.int32)
    centres = np.random.default_rng(0).normal(size=(classes, features))
    return (centres[labels] + rng.normal(size=(count, features))).astype(np.float32), labels


@pytest.mark.parametrize('block_bytes', [1, 4 * 150 * 7, 2**26])
def test_it_agrees_with_scikit_learn(block_bytes, monkeypatch):
    monkeypatch.setattr(retrieval, 'BLOCK_BYTES', block_bytes)
    (queries, labels), (bank, bank_labels) = draw(1, 40), draw(2, 150)
    calls = []
    found = retrieve(queries, labels, bank, bank_labels, ks=(1, 5, 500), advance=lambda: calls.append(0))
    assert len(calls) == retrieval_blocks(40, 150)
    similarities = np.asarray(nearest(queries, bank, 150)[0]), np.asarray(nearest(queries, bank, 150)[1])
    order = NearestNeighbors(n_neighbors=150, metric='cosine').fit(bank).kneighbors(queries, return_distance=False)
    for row in range(40):
        relevant = bank_labels[similarities[1][row]] == labels[row]
        expected = average_precision_score(relevant, similarities[0][row])
        assert found.average_precision[row] == pytest.approx(expected, abs=1e-6)
        for index, k in enumerate((1, 5, 500)):
            assert found.found[index, row] == (bank_labels[order[row, :k]] == labels[row]).any()
    assert 0.3 < found.average_precision.mean() < 1
    assert 0.3 < found.found[0].mean() < 1


def test_ties_count_as_equally_similar():
    """Three entries are equal, and one of them is relevant: the precision is a third, as in scikit-learn."""
    bank = np.array([[1, 0], [2, 0], [3, 0], [0, 1]], np.float32)
    found = retrieve(np.array([[1, 0]], np.float32), np.array([0]), bank, np.array([1, 1, 0, 1]), ks=(1, 3))
    assert found.average_precision[0] == pytest.approx(average_precision_score([0, 0, 1, 0], [1, 1, 1, 0]))
    np.testing.assert_array_equal(found.found, [[False], [True]])


def test_a_class_that_is_missing_in_the_bank():
    bank, bank_labels = draw(3, 20)
    found = retrieve(bank[:2], np.array([9, 9]), bank, bank_labels, ks=(20,))
    np.testing.assert_array_equal(found.average_precision, 0)
    assert not found.found.any()
