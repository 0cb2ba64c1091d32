"""Compares each measure with its published formula, computed pair by pair in float64, and with known cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualcl_jax.evaluators.measures import knn, structure
from dualcl_jax.evaluators.measures.structure import (
    alignment,
    class_distances,
    effective_rank,
    purity,
    std_per_dimension,
    uniformity,
)


def draw(seed, count, features=5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    rows = rng.normal(size=(3, features))[labels] + rng.normal(size=(count, features))
    return (rows * rng.uniform(0.1, 20, (count, 1))).astype(np.float32), labels


def unit(features):
    return np.float64(features) / np.linalg.norm(np.float64(features), axis=1, keepdims=True)


def test_alignment():
    (first, _), (second, _) = draw(0, 30), draw(1, 30)
    expected = np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(unit(first), unit(second), strict=True)])
    assert alignment(first, second) == pytest.approx(expected, abs=1e-12)
    assert alignment(first, 3 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4)


@pytest.mark.parametrize('count', [2, 40, 600])
def test_uniformity(count):
    features, _ = draw(2, count)
    rows = unit(features)
    distances = np.sum((rows[:, None] - rows[None]) ** 2, axis=2)[~np.eye(count, dtype=bool)]
    assert uniformity(features) == pytest.approx(np.log(np.mean(np.exp(-2 * distances))), abs=1e-4)


def test_uniformity_of_known_cases():
    assert uniformity(np.ones((700, 4), np.float32)) == pytest.approx(0, abs=1e-5)
    assert uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8, abs=1e-5)
    assert uniformity(np.zeros((700, 4), np.float32)) == 0
    assert uniformity(np.array([[1.0, 0], [0, 0]])) == pytest.approx(-2, abs=1e-5)


def test_zeros_are_at_distance_1():
    """As the similarity of a row of zeros is 0: no class is nearer than another."""
    assert class_distances(np.zeros((6, 3)), np.arange(6) % 2) == (1, 1)


@pytest.mark.parametrize(('count', 'features'), [(50, 7), (6, 20)])
def test_effective_rank(count, features):
    rows = np.random.default_rng(3).normal(size=(count, features)) * 3
    singular = np.linalg.svd(rows, compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    assert effective_rank(rows) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-5)


def test_effective_rank_of_known_cases():
    rng = np.random.default_rng(4)
    orthogonal = np.linalg.qr(rng.normal(size=(30, 8)))[0]
    assert effective_rank(orthogonal) == pytest.approx(8, rel=1e-4)
    assert effective_rank(rng.normal(size=(30, 1)) @ rng.normal(size=(1, 8))) == pytest.approx(1, rel=1e-3)


def test_std_per_dimension():
    features, _ = draw(5, 50)
    np.testing.assert_allclose(std_per_dimension(features), unit(features).std(axis=0) * np.sqrt(5))
    even = np.random.default_rng(6).normal(size=(20_000, 16))
    np.testing.assert_allclose(std_per_dimension(even), 1, atol=0.02)
    np.testing.assert_allclose(std_per_dimension(np.ones((9, 4))), 0, atol=1e-12)


@settings(max_examples=20, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.sampled_from([4, 33, 60]), k=st.sampled_from([1, 3, 100]))
def test_purity_and_class_distances_pair_by_pair(seed, count, k):
    features, labels = draw(seed, count)
    cosines = unit(features) @ unit(features).T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind='stable')[:, : min(k, count - 1)]
    others = (labels[:, None] == labels[None]).sum(axis=1) - 1
    hits = (labels[order] == labels[:, None]).sum(axis=1)
    expected = [hit / min(k, most) for hit, most in zip(hits, others, strict=True) if most]
    np.testing.assert_allclose(purity(features, labels, k), expected)
    same, others = labels[:, None] == labels[None], ~np.eye(count, dtype=bool)
    if (same & others).any() and not same.all():
        within, between = class_distances(features, labels)
        assert within == pytest.approx(1 - cosines[same & others].mean(), abs=1e-9)
        assert between == pytest.approx(1 - cosines[~same].mean(), abs=1e-9)


def test_blocks_change_nothing(monkeypatch):
    features, labels = draw(7, 50)
    expected = uniformity(features), purity(features, labels, 4)
    monkeypatch.setattr(structure, 'BLOCK_ROWS', 16)
    monkeypatch.setattr(knn, 'BLOCK_ROWS', 16)
    assert uniformity(features) == pytest.approx(expected[0], abs=1e-5)
    np.testing.assert_array_equal(purity(features, labels, 4), expected[1])


def test_purity_of_small_classes():
    """It is 1 where all others of the class are the nearest; an image without others is left out."""
    labels = np.concatenate([np.repeat(np.arange(20), 3), [20]])
    features = np.eye(21)[labels] + 1e-3 * np.random.default_rng(0).normal(size=(61, 21))
    np.testing.assert_array_equal(purity(features.astype(np.float32), labels, 10), np.ones(60))


def test_purity_of_collapsed_features_excludes_the_image_itself():
    """If all images are equal, the first are the nearest: two of images 0 to 5 have the label of each of these six."""
    found = purity(np.ones((12, 3), np.float32), np.arange(12) % 2, 5)
    np.testing.assert_allclose(found, [2 / 5] * 6 + [3 / 5, 2 / 5] * 3)
