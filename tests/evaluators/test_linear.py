"""Compares linear probes with scikit-learn's logistic regression and SGD in NumPy, and the sweep with its members."""

from unittest import mock

import jax
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dualcl_jax.evaluators.measures import linear
from dualcl_jax.evaluators.measures.linear import choose_probe, predict, train_probes

FEATURES, CLASSES = 24, 6


def draw(seed, count, noise=1.3):
    """Overlapping classes in correlated, rectified features of very different scales and offsets."""
    fixed = np.random.default_rng(0)
    centres = fixed.normal(size=(CLASSES, 8))
    mix, scale = fixed.normal(size=(8, FEATURES)), fixed.uniform(0.01, 30, FEATURES)
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count).astype(np.int32)
    latent = centres[labels] + noise * rng.normal(size=(count, 8))
    features = np.maximum(latent @ mix + 0.3 * rng.normal(size=(count, FEATURES)), -0.5) * scale + 3
    return features.astype(np.float32), labels


def test_within_half_a_point_of_scikit_learn():
    (features, labels), (test, test_labels) = draw(1, 6000), draw(2, 6000)
    choice = choose_probe(
        features,
        labels,
        CLASSES,
        learning_rates=(0.01, 0.03, 0.1),
        weight_decays=(0.0, 1e-4, 1e-3),
        validation=0.1,
        epochs=20,
        batch_size=256,
        seed=0,
    )
    ours = np.mean(predict(choice.probe, test)[0] == test_labels)
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(max_iter=2000).fit(scaler.transform(features), labels)
    theirs = reference.score(scaler.transform(test), test_labels)
    assert 0.4 < theirs < 0.9  # neither chance nor trivial
    assert abs(ours - theirs) < 0.005
    assert abs(choice.validation_top1 - ours) < 0.05


def test_the_optimum_agrees_with_scikit_learn():
    """Enough full-batch steps reach the minimum of cross-entropy + decay / 2 · ‖weights‖², up to the bias's freedom."""
    features, labels = draw(3, 500)
    decay = 0.01
    probes = train_probes(features, labels, CLASSES, [0.3, 0.1], [decay, 0.1], epochs=3000, batch_size=10**6, seed=0)
    inputs = StandardScaler().fit_transform(np.float64(features))
    for index, strength in enumerate((decay, 0.1)):
        reference = LogisticRegression(C=1 / (strength * len(features)), tol=1e-10, max_iter=10_000).fit(inputs, labels)
        np.testing.assert_allclose(probes.weights[index], reference.coef_.T, atol=5e-3)
        bias = np.asarray(probes.biases[index])
        np.testing.assert_allclose(bias - bias.mean(), reference.intercept_ - reference.intercept_.mean(), atol=5e-3)


def test_two_epochs_are_those_of_sgd_in_numpy():
    """Three steps in an epoch of 50 examples, in a new order each time, and a cosine over all six steps."""
    features, labels = draw(5, 50)
    decay, epochs, steps, size = 0.02, 2, 3, 16
    found = train_probes(features, labels, CLASSES, [0.3], [decay], epochs=epochs, batch_size=size, seed=7)
    inputs, targets = StandardScaler().fit_transform(np.float64(features)), np.eye(CLASSES)[labels]
    params = [np.zeros((FEATURES, CLASSES)), np.zeros(CLASSES)]
    velocity = [np.zeros_like(part) for part in params]
    for step in range(epochs * steps):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(7), step // steps), 50))
        rows = order[step % steps * size :][:size]
        error = (softmax(inputs[rows] @ params[0] + params[1], axis=1) - targets[rows]) / size
        gradients = inputs[rows].T @ error + decay * params[0], error.sum(axis=0)
        velocity = [0.9 * before + gradient for before, gradient in zip(velocity, gradients, strict=True)]
        rate = 0.3 * (1 + np.cos(np.pi * step / (epochs * steps))) / 2
        params = [part - rate * change for part, change in zip(params, velocity, strict=True)]
    np.testing.assert_allclose(found.weights[0], params[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.biases[0], params[1], rtol=1e-4, atol=1e-5)


def test_a_sweep_is_its_members():
    features, labels = draw(4, 300)
    rates, decays = [0.01, 0.1, 0.03], [0.0, 1e-2, 1e-3]
    together = train_probes(features, labels, CLASSES, rates, decays, epochs=3, batch_size=64, seed=5)
    for index in range(3):
        alone = train_probes(
            features,
            labels,
            CLASSES,
            rates[index : index + 1],
            decays[index : index + 1],
            epochs=3,
            batch_size=64,
            seed=5,
        )
        np.testing.assert_allclose(together.weights[index], alone.weights[0], atol=1e-5)
        np.testing.assert_allclose(together.biases[index], alone.biases[0], atol=1e-5)


def test_scale_and_offset_change_nothing_and_constants_do_no_harm():
    features, labels = draw(6, 300)
    moved = np.concatenate([features * 100 - 7, np.full((300, 1), 2.5, np.float32)], axis=1)
    settings = {'epochs': 2, 'batch_size': 50, 'seed': 0}
    plain = train_probes(features, labels, CLASSES, [0.1], [0.0], **settings)
    other = train_probes(moved, labels, CLASSES, [0.1], [0.0], **settings)
    np.testing.assert_allclose(other.weights[:, :-1], plain.weights, atol=1e-3)
    np.testing.assert_array_equal(other.weights[:, -1], 0)
    np.testing.assert_array_equal(predict(other, moved), predict(plain, features))


def test_the_choice_uses_held_out_images():
    """One learning rate is useless: the probe chooses the other, and twice with the same result."""
    features, labels = draw(7, 400)
    calls = []
    settings = {'validation': 0.25, 'epochs': 5, 'batch_size': 32, 'seed': 1, 'advance': lambda: calls.append(0)}
    choices = [
        choose_probe(features, labels, CLASSES, learning_rates=(0.0, 0.05), weight_decays=(1e-4,), **settings)
        for _ in range(2)
    ]
    assert choices[0].learning_rate == 0.05
    assert len(calls) == 2 * 2 * 5
    np.testing.assert_array_equal(choices[0].probe.weights, choices[1].probe.weights)


@pytest.mark.parametrize('validation', [0.01, 0.99])
def test_an_image_is_held_out_and_one_remains(validation):
    features, labels = draw(7, 10)
    settings = {'learning_rates': (0.1,), 'weight_decays': (0.0,), 'epochs': 1, 'batch_size': 4, 'seed': 0}
    choice = choose_probe(features, labels, CLASSES, validation=validation, **settings)
    assert 0 <= choice.validation_top1 <= 1


def test_the_choice_is_trained_on_all_images():
    """The sweep sees a class of one image, which the first draw would hold out. Of equal rates, the first is taken."""
    rng = np.random.default_rng(0)
    labels = np.arange(40, dtype=np.int32) % 2
    labels[np.random.default_rng(3).permutation(40)[0]] = 2
    features = (9 * np.eye(3)[labels] + rng.normal(size=(40, 3))).astype(np.float32)  # perfectly separable
    settings = {'weight_decays': (0.0,), 'validation': 0.25, 'epochs': 9, 'batch_size': 16, 'seed': 3}
    with (
        mock.patch.object(linear, 'train_probes', wraps=train_probes) as trained,
        mock.patch.object(linear, 'predict', wraps=predict) as predicted,
    ):
        choice = choose_probe(features, labels, 3, learning_rates=(0.2, 0.3), **settings)
    (fit, classes), (all_images, all_classes) = (call.args[:2] for call in trained.call_args_list)
    ((_, checked),) = (call.args for call in predicted.call_args_list)
    np.testing.assert_array_equal(np.unique(classes), [0, 1, 2])
    assert (len(fit), len(checked)) == (30, 10)
    np.testing.assert_array_equal(np.sort(np.concatenate([fit, checked])[:, 0]), np.sort(features[:, 0]))
    np.testing.assert_array_equal(all_images, features)
    np.testing.assert_array_equal(all_classes, labels)
    assert (choice.learning_rate, choice.validation_top1) == (0.2, 1.0)


@pytest.mark.parametrize(('count', 'held'), [(1, 2**29), (9000, 2**29), (300, 4 * 2 * CLASSES * 64), (3, 1)])
def test_prediction_in_parts(count, held, monkeypatch):
    """As many examples at a time as keep the scores of all probes within the bound, but at least one."""
    rows, one = [], linear._predict
    monkeypatch.setattr(linear, 'PREDICT_BYTES', held)
    monkeypatch.setattr(linear, '_predict', lambda *given: (rows.append(len(given[2])), one(*given))[1])
    features, labels = draw(8, 200)
    probes = train_probes(features, labels, CLASSES, [0.1, 0.01], [0.0, 0.0], epochs=2, batch_size=64, seed=0)
    test, _ = draw(9, count)
    scores = np.einsum('nf,gfc->gnc', (test - probes.mean) / probes.std, probes.weights) + probes.biases[:, None]
    found = predict(probes, test)
    assert found.shape == (2, count)
    assert np.mean(found == scores.argmax(axis=2)) > 0.999
    assert max(rows) == min(count, 8192, max(1, held // (4 * 2 * CLASSES)))
