"""The images that reports show, and their map."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from dualcl_jax.data import Splits, load
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.reports.samples import NEIGHBOURS, in_plane, one_per_class, take_samples
from tests.support.random_run import random_run, reported


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize('features', [np.ones((40, 8)), np.zeros((40, 8)), np.eye(3), np.linspace(-1, 1, 9)[:, None]])
def test_collapsed_or_tiny_features_have_a_map(features):
    points = in_plane(features)
    assert points.shape == (len(features), 2)
    assert np.isfinite(points).all()


def test_a_map_is_deterministic(rng):
    features = rng.normal(size=(50, 8))
    np.testing.assert_array_equal(in_plane(features, seed=1), in_plane(features, seed=1))
    assert not np.array_equal(in_plane(features, seed=1), in_plane(features, seed=2))


@pytest.mark.parametrize('features', [np.ones((2, 4)), np.full((9, 4), np.nan)])
def test_features_without_a_map_are_refused(features):
    with pytest.raises(ValueError, match='need finite features of at least 3 examples'):
        in_plane(features)


def test_clusters_stay_together(rng):
    centres = rng.normal(size=(3, 32))
    labels = np.arange(90) % 3
    points = in_plane((centres[labels] + 0.2 * rng.normal(size=(90, 32))).astype(np.float32))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()


def test_one_per_class():
    labels = np.array([2, 2, -1, 0, 2, 1])
    np.testing.assert_array_equal(one_per_class(labels, 4), [2, 3, 5, 0])
    np.testing.assert_array_equal(one_per_class(labels, 6), [2, 3, 5, 0, 1, 4])


def test_neighbours_are_the_nearest_training_images(tmp_path):
    """They agree with scikit-learn's cosines of the same features."""
    _, samples = reported(random_run(tmp_path, 'model.name=tiny'))
    found, similarities = samples.nearest
    assert not samples.of_training
    cosines = cosine_similarity(samples.features[samples.queries], samples.bank)
    order = np.argsort(-cosines, axis=1)[:, : found.shape[1]]
    np.testing.assert_allclose(similarities, np.take_along_axis(cosines, order, axis=1), atol=1e-5)
    np.testing.assert_array_equal(found[:, 0], samples.banked[order[:, 0]])


def test_a_query_is_not_its_own_neighbour(tmp_path, monkeypatch):
    """Shown examples and bank are drawn independently, so the bank has only some of the queries."""
    monkeypatch.setattr('dualcl_jax.reports.samples.BANK_IMAGES', 100)
    run = random_run(tmp_path, 'model.name=tiny')
    train = load(run.config.data).train
    samples = take_samples(Embedder(run.method, run.mesh), run.state.variables, Splits(train, None))
    own = samples.shown[samples.queries]
    found, similarities = samples.nearest
    assert {True, False} == set(np.isin(own, samples.banked).tolist())
    cosines = cosine_similarity(samples.features[samples.queries], samples.bank)
    cosines[own[:, None] == samples.banked] = -2
    order = np.argsort(-cosines, axis=1)[:, :NEIGHBOURS]
    np.testing.assert_array_equal(found, samples.banked[order])
    np.testing.assert_allclose(similarities, np.take_along_axis(cosines, order, axis=1), atol=1e-5)
