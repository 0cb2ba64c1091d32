"""Near duplicates and outliers against a direct computation, and copies of photographs that are found."""

import io

import numpy as np
import pytest
from PIL import Image

from dualcl_jax.data.images import photo_patches
from dualcl_jax.evaluators.measures import knn, neighbours
from dualcl_jax.evaluators.measures.neighbours import (
    Neighbours,
    Pairs,
    confirmed,
    near_duplicates,
    nearest_others,
    outlier_scores,
)


def direct(features: np.ndarray) -> np.ndarray:
    """All similarities in float64, with -2 on the diagonal."""
    rows = features.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarities = rows @ rows.T
    np.fill_diagonal(similarities, -2)
    return similarities


def test_nearest_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, 'BLOCK_ROWS', 16)  # three blocks, the last one short
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32) + 5
    calls: list[None] = []
    found = nearest_others(features, lambda: calls.append(None))
    assert len(calls) == neighbours.num_blocks(40) == 3
    expected = np.sort(direct(features), axis=1)[:, ::-1][:, : neighbours.NEIGHBOURS]
    np.testing.assert_allclose(found.similarities, expected, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(direct(features), found.rows, axis=1), expected, atol=1e-6)


def test_equal_rows_are_not_their_own_neighbours() -> None:
    features = np.repeat(np.eye(2, 4, dtype=np.float32), 15, axis=0)  # more equal rows than neighbours
    found = nearest_others(features)
    assert (found.rows != np.arange(30)[:, None]).all()
    np.testing.assert_allclose(found.similarities, 1, atol=1e-6)
    assert (outlier_scores(found) == 0).all()


def test_two_rows() -> None:
    found = nearest_others(np.array([[1.0, 0], [0, 1]], np.float32))
    assert found.rows.tolist() == [[1], [0]]


@pytest.mark.parametrize('count', [2, 3, 5])
def test_equal_rows_alone_are_duplicates(count: int) -> None:
    features = np.repeat(np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32), count, axis=0)
    found = nearest_others(features)
    assert len(near_duplicates(found, 0.99).first) == count * (count - 1) // 2
    assert (outlier_scores(found) == 0).all()


@pytest.mark.parametrize('features', [64, 512])
def test_a_threshold_of_1_finds_all_copies(features: int) -> None:
    """The cosines of some equal rows are below 1, and those of others above it."""
    drawn = np.random.default_rng(0).normal(size=(1000, features)).astype(np.float32)
    nearest = nearest_others(np.repeat(drawn, 2, axis=0))
    assert nearest.similarities[:, 0].min() < 1 < nearest.similarities[:, 0].max()
    found = near_duplicates(nearest, 1)
    assert sorted(found.first) == list(range(0, 2000, 2))
    np.testing.assert_array_equal(sorted(found.second), np.arange(1, 2000, 2))
    assert found.similarities.dtype == np.float32
    assert found.similarities.max() == 1


def test_two_similar_rows_are_duplicates() -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    assert len(near_duplicates(nearest_others(np.stack([one, one + 1e-2])), 0.99).first) == 1
    assert len(near_duplicates(nearest_others(np.stack([one, other])), 0.99).first) == 0


def test_pairs_and_outliers() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 16)).astype(np.float32)
    features[7], features[40] = features[3], features[11] + 1e-3
    found = near_duplicates(nearest_others(features), 0.99)
    assert sorted(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(3, 7), (11, 40)]
    centre = rng.normal(size=16)
    cluster = (centre + 0.3 * rng.normal(size=(60, 16))).astype(np.float32)
    features = np.concatenate([cluster, -cluster, [10 * rng.normal(size=16)]]).astype(np.float32)
    assert np.argmax(outlier_scores(nearest_others(features))) == 120


def test_outliers_among_copies() -> None:
    """60 of 100 rows are as near to their neighbours as can be, up to rounding: the median deviation is 0."""
    similarities = np.concatenate([np.ones(60), np.linspace(0.9, 1, 39), [-0.9]]).astype(np.float32)
    similarities[:60:2] -= np.float32(1.2e-7)
    rows = np.zeros((100, 1), np.int32)
    scores = outlier_scores(Neighbours(similarities[:, None], rows))
    assert np.argmax(scores) == 99
    assert scores[99] > 4  # the default of `--outliers`
    assert (scores[:99] < 4).all()
    np.testing.assert_allclose(scores[:60], 0, atol=1e-4)
    alike = Neighbours(np.where(np.arange(100) < 60, 1, 1 - 1.2e-7).astype(np.float32)[:, None], rows)
    assert (outlier_scores(alike) == 0).all()


@pytest.mark.parametrize('spread', [0.1, 1e-6])
def test_scores_are_in_standard_deviations(spread: float) -> None:
    """Also if the median deviation is that of rounding, where the mean deviation replaces it."""
    drawn = np.random.default_rng(0).normal(size=(10_000, 1))
    scores = outlier_scores(Neighbours((spread * drawn).astype(np.float32), np.zeros((10_000, 1), np.int32)))
    assert scores.std() == pytest.approx(1, abs=0.03)
    assert np.median(scores) == pytest.approx(0, abs=1e-6)


def copy_of(image: np.ndarray, side: int, quality: int) -> np.ndarray:
    """An image, resized, compressed, and as large as before."""
    content = io.BytesIO()
    Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).save(content, 'JPEG', quality=quality)
    return np.asarray(Image.open(content).resize(image.shape[:2]))


def test_pixels_confirm_copies() -> None:
    """Of a patch of each photograph and their copies, every true pair is confirmed and no other one."""
    photos = photo_patches.load().test.examples(np.arange(0, 2160, 120))
    copies = np.stack([copy_of(image, *how) for image, how in zip(photos, [(24, 50), (48, 80)] * 9, strict=True)])
    images = np.concatenate([photos, copies])
    first, second = np.triu_indices(36, 1)
    alike = Pairs(first, second, np.ones(len(first), np.float32))  # an encoder that finds all alike
    found = confirmed(alike, 0.8, lambda rows: images[rows])
    assert sorted(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(at, at + 18) for at in range(18)]
    assert (np.diff(found.similarities) <= 0).all()
    nothing = Pairs(first[:0], second[:0], np.ones(0, np.float32))
    assert len(confirmed(nothing, 0.9, lambda rows: images[rows]).first) == 0


@pytest.mark.parametrize('channels', [3, 40])
def test_a_threshold_of_1_confirms_all_copies(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 16, 16, channels)).astype(np.uint8)
    rows = np.arange(200)
    alike = Pairs(rows, rows + 200, np.ones(200, np.float32))
    found = confirmed(alike, 1, lambda rows: images[rows % 200])
    assert sorted(found.first) == rows.tolist()
    assert found.similarities.dtype == np.float32


@pytest.mark.parametrize('kind', ['uint8', 'uint16', 'float32'])
def test_equal_blank_images_are_copies(kind: str) -> None:
    """Pixels of one value have no correlation: blank images are copies where that value is the same."""
    high = np.iinfo(kind).max if kind != 'float32' else 0.3
    images = np.random.default_rng(0).uniform(0, high, (7, 20, 20, 1)).astype(kind)
    images[:2], images[2:4], images[4] = 0, high, high / 3
    first, second = np.triu_indices(7, 1)
    alike = Pairs(first, second, np.ones(len(first), np.float32))
    found = confirmed(alike, 0.9, lambda rows: images[rows])
    assert sorted(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 1), (2, 3)]
    np.testing.assert_array_equal(found.similarities, 1)
