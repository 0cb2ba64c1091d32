import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from dualcl_jax.evaluators.measures import knn
from dualcl_jax.evaluators.measures.knn import knn_blocks, knn_grid, knn_predict, nearest


def clustered(seed, num_queries, num_bank, features, num_classes, noise=1.5):
    """Queries with labels and a bank with labels: overlapping clusters, with rows of very different lengths."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_classes, features))

    def draw(count):
        labels = rng.integers(num_classes, size=count, dtype=np.int32)
        rows = centres[labels] + noise * rng.normal(size=(count, features))
        return (rows * rng.uniform(0.01, 100, size=(count, 1))).astype(np.float32), labels

    return *draw(num_queries), *draw(num_bank)


def brute_force(queries, bank, bank_labels, k, temperature, num_classes):
    """Similarities, indices and scores in float64, query by query."""
    queries, bank = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.float64(queries), np.float64(bank)))
    all_similarities, all_indices = [], []
    scores = np.zeros((len(queries), num_classes))
    for row, query in enumerate(queries):
        similarities = bank @ query
        indices = np.argsort(-similarities, kind='stable')[:k]
        all_similarities.append(similarities[indices])
        all_indices.append(indices)
        for index in indices:
            scores[row, bank_labels[index]] += np.exp(similarities[index] / temperature)
    return np.array(all_similarities), np.array(all_indices), scores


@pytest.mark.parametrize(('k', 'temperature'), [(1, 0.1), (5, 0.2), (20, 0.1), (200, 0.1), (50, 1.0), (30, 0.02)])
def test_predictions_equal_scikit_learn(k, temperature):
    queries, labels, bank, bank_labels = clustered(k, 150, 600, 24, 7)
    reference = KNeighborsClassifier(
        n_neighbors=k,
        metric='cosine',
        algorithm='brute',
        weights=lambda distances: np.exp((1 - distances) / temperature),
    ).fit(bank, bank_labels)
    ours = knn_predict(queries, bank, bank_labels, k=k, temperature=temperature, num_classes=7)
    np.testing.assert_array_equal(ours, reference.predict(queries))
    assert 0.3 < np.mean(ours == labels) < 1  # neither chance nor trivial


@settings(max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    num_bank=st.sampled_from([1, 2, 9, 40]),
    num_classes=st.sampled_from([1, 2, 5]),
    k=st.sampled_from([1, 3, 8, 1000]),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
)
def test_scores_equal_brute_force_in_float64(seed, num_bank, num_classes, k, temperature):
    queries, _, bank, bank_labels = clustered(seed, 6, num_bank, 5, num_classes)
    similarities, indices, scores = brute_force(queries, bank, bank_labels, k, temperature, num_classes)
    ours_similarities, ours_indices = nearest(queries, bank, k)
    assert ours_similarities.dtype == jnp.float32
    assert ours_indices.dtype == jnp.int32
    assert ours_indices.shape == (6, min(k, num_bank))
    np.testing.assert_allclose(ours_similarities, similarities, atol=1e-6)
    np.testing.assert_array_equal(ours_indices, indices)
    ours = knn._vote(ours_similarities, bank_labels[ours_indices], temperature, np.arange(num_classes)[None])
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, scores / scores.sum(axis=1, keepdims=True), rtol=5e-5, atol=1e-7)


def test_k_beyond_the_bank_means_all_of_it():
    queries, _, bank, bank_labels = clustered(1, 40, 30, 6, 3)
    arguments = {'temperature': 0.1, 'num_classes': 3}
    beyond = knn_predict(queries, bank, bank_labels, k=1000, **arguments)
    np.testing.assert_array_equal(beyond, knn_predict(queries, bank, bank_labels, k=30, **arguments))


def test_one_class_is_always_right():
    queries, labels, bank, bank_labels = clustered(2, 11, 30, 6, 1)
    found = knn_predict(queries, bank, bank_labels, k=5, temperature=0.1, num_classes=1)
    np.testing.assert_array_equal(found, labels)


def test_ties_go_to_the_lower_index_and_the_lower_class():
    bank = np.array([[0, 1], [2, 0], [1, 0], [5, 0]], np.float32)
    _, indices = nearest(np.array([[1, 0]], np.float32), bank, 3)
    np.testing.assert_array_equal(indices, [[1, 2, 3]])
    labels = np.array([0, 2, 1, 1], np.int32)
    assert knn_predict(np.array([[1, 0]]), bank, labels, k=2, temperature=0.1, num_classes=3) == [1]


def test_scale_zero_vectors_and_a_small_temperature():
    queries, _, bank, bank_labels = clustered(3, 5, 20, 4, 3)

    def score(queries, bank):
        similarities, indices = nearest(queries, bank, 7)
        return knn._vote(similarities, bank_labels[indices], 1e-3, np.arange(3)[None])

    np.testing.assert_allclose(score(queries, bank), score(1e3 * queries, bank / 1e3), atol=1e-3)
    similarities, _ = nearest(np.zeros((2, 4), np.float32), bank, 3)
    np.testing.assert_array_equal(similarities, np.zeros((2, 3)))
    assert np.isfinite(score(np.zeros((2, 4), np.float32), bank)).all()


def test_narrow_dtypes_are_compared_in_full_float32():
    rng = np.random.default_rng(4)
    pixels = rng.integers(256, size=(30, 12), dtype=np.uint8)
    np.testing.assert_array_equal(nearest(pixels, pixels, 4)[1], nearest(np.float32(pixels), np.float32(pixels), 4)[1])
    features = jnp.asarray(rng.normal(size=(30, 12)), jnp.bfloat16)
    assert nearest(features, features, 4)[0].dtype == jnp.float32
    lowered = jax.jit(nearest, static_argnums=2).lower(features, features, 4).as_text()
    assert 'precision = [HIGHEST, HIGHEST]' in lowered


@pytest.mark.parametrize('rows', [1, 7, 25, 26, 1000])
def test_blocks_change_nothing(rows, monkeypatch):
    queries, _, bank, bank_labels = clustered(5, 103, 80, 8, 5)
    predict = functools.partial(knn_predict, queries, bank, bank_labels, k=20, temperature=0.1, num_classes=5)
    whole = predict()
    monkeypatch.setattr(knn, 'BLOCK_BYTES', rows * 4 * 80)  # on each of four devices
    np.testing.assert_array_equal(predict(), whole)


def test_a_grid_is_its_entries():
    """It includes k beyond the bank. `advance` is called once for each block."""
    queries, _, bank, bank_labels = clustered(9, 103, 80, 8, 5)
    ks, temperatures, calls = (1, 20, 200), (0.05, 1.0), []
    grid = knn_grid(
        queries, bank, bank_labels, ks=ks, temperatures=temperatures, num_classes=5, advance=lambda: calls.append(0)
    )
    assert grid.shape == (3, 2, 103)
    assert len(calls) == knn_blocks(103, 80)
    for row, k in zip(grid, ks, strict=True):
        for found, temperature in zip(row, temperatures, strict=True):
            single = knn_predict(queries, bank, bank_labels, k=k, temperature=temperature, num_classes=5)
            np.testing.assert_array_equal(found, single)


def test_one_compilation_for_all_blocks(monkeypatch):
    queries, _, bank, bank_labels = clustered(6, 61, 90, 8, 5)
    monkeypatch.setattr(knn, 'BLOCK_BYTES', 4 * 4 * 90)  # 16 queries at a time
    before = knn._predict_block._cache_size()
    knn_predict(queries, bank, bank_labels, k=20, temperature=0.1, num_classes=5)
    assert knn._predict_block._cache_size() == before + 1


def test_one_device_equals_four(monkeypatch):
    queries, _, bank, bank_labels = clustered(7, 103, 80, 8, 5)
    predict = functools.partial(knn_predict, queries, bank, bank_labels, k=20, temperature=0.1, num_classes=5)
    assert len(jax.local_devices()) == 4
    four = predict()
    monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:1])
    np.testing.assert_array_equal(predict(), four)


def test_devices_exchange_nothing():
    queries, _, bank, bank_labels = clustered(8, 16, 80, 8, 5)
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), ('devices',))
    compiled = knn._predict_block.lower(
        queries, bank, bank_labels, mesh=mesh, ks=(20,), temperatures=(0.1,), num_classes=5
    ).compile()
    assert 'f32[4,80]' in compiled.as_text()  # each device has a quarter of the similarities
    assert 'all-gather' not in compiled.as_text()


def test_many_classes_take_no_more_memory_than_the_similarities():
    """With [Q, k, C] it would be 200 times as much for this number of classes."""
    queries, bank, labels = (jax.ShapeDtypeStruct(*of) for of in (((64, 8), 'f4'), ((800, 8), 'f4'), ((800,), 'i4')))
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()[:1]), ('devices',))
    options = {'mesh': mesh, 'ks': (200, 5), 'temperatures': (0.1, 0.2), 'num_classes': 800}
    compiled = knn._predict_block.lower(queries, bank, labels, **options).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (4 * 64 * 800)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'bank_labels': np.array([0, 1, -1, 2])}, r'bank_labels must lie in \[0, 3\).*-1'),
        ({'bank_labels': np.array([0, 1, 2, 3])}, 'got 0 to 3'),
        ({'bank_labels': np.array([0])}, 'bank_labels must be 4 integers'),
        ({'bank_labels': np.array([0.0, 1, 2, 2])}, 'bank_labels must be 4 integers'),
        ({'bank': np.ones((4, 3))}, 'queries have 5 features and the bank 3'),
        ({'bank': np.ones((0, 5))}, r'bank must be a non-empty array .* got shape \(0, 5\)'),
        ({'queries': np.full((2, 5), np.nan)}, 'queries holds values that are not finite'),
        ({'k': 0}, 'must be positive'),
        ({'temperature': 0.0}, 'must be positive'),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {
        'queries': np.ones((2, 5)),
        'bank': np.ones((4, 5)),
        'bank_labels': np.array([0, 1, 2, 2]),
        'k': 3,
        'temperature': 0.1,
        'num_classes': 3,
    }
    with pytest.raises(ValueError, match=message):
        knn_predict(**(arguments | change))
