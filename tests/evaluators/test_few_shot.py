import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from dualcl_jax.evaluators.measures import few_shot
from dualcl_jax.evaluators.measures.few_shot import centroid_accuracies, draw_shots


def blobs(seed, count, classes=5, features=12):
    centres = np.random.default_rng(0).normal(size=(classes, features))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count).astype(np.int32)
    rows = (centres[labels] + 1.2 * rng.normal(size=(count, features))) * rng.uniform(0.1, 9, (count, 1))
    return rows.astype(np.float32), labels


def test_every_draw_agrees_with_scikit_learns_nearest_centroid():
    """For unit vectors, the nearest normalised centroid by distance is also the nearest by cosine."""
    (bank, labels), (queries, query_labels) = blobs(1, 400), blobs(2, 300)
    chosen = draw_shots(labels, 5, shots=4, draws=11, seed=3)
    found = centroid_accuracies(bank, chosen, queries, query_labels)
    for rows, accuracy in zip(chosen, found, strict=True):
        model = NearestCentroid().fit(normalize(bank[rows.ravel()]), labels[rows.ravel()])
        model.centroids_ = normalize(model.centroids_)
        assert accuracy == pytest.approx(model.score(normalize(queries), query_labels), abs=1e-9)
    assert 0.3 < found.mean() < 1
    assert found.std() > 0


@pytest.mark.parametrize('held', [1, 4 * 5 * 4 * 12, 4 * 5 * 70, 4 * 5 * 100 * 3])
def test_less_memory_for_the_same(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many classes, the scores of all queries in eight draws would fill the memory: they are taken in blocks."""
    (bank, labels), (queries, query_labels) = blobs(1, 200), blobs(2, 100)
    chosen = draw_shots(labels, 5, shots=4, draws=11, seed=3)
    whole = centroid_accuracies(bank, chosen, queries, query_labels)
    monkeypatch.setattr(few_shot, 'HELD_BYTES', held)
    np.testing.assert_array_equal(centroid_accuracies(bank, chosen, queries, query_labels), whole)


def test_draws_are_balanced_different_and_fixed_by_the_seed():
    _, labels = blobs(4, 200)
    chosen = draw_shots(labels, 5, shots=6, draws=7, seed=0)
    assert chosen.shape == (7, 5, 6)
    np.testing.assert_array_equal(labels[chosen], np.broadcast_to(np.arange(5)[None, :, None], chosen.shape))
    assert all(len(np.unique(rows)) == 30 for rows in chosen)
    assert len({rows.tobytes() for rows in chosen}) == 7
    np.testing.assert_array_equal(chosen, draw_shots(labels, 5, shots=6, draws=7, seed=0))
    assert (chosen != draw_shots(labels, 5, shots=6, draws=7, seed=1)).any()


def test_too_few_of_a_class():
    with pytest.raises(ValueError, match='a class has 1 examples, fewer than 2'):
        draw_shots(np.array([0, 0, 1]), 2, shots=2, draws=1, seed=0)
