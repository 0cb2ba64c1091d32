"""Linear probes of small sets against scikit-learn, used directly."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dualcl_jax.evaluators.measures import logistic
from dualcl_jax.evaluators.measures.logistic import predict_folds, predict_part

NONE = np.zeros(0, np.int64)


def draw(seed=0, count=240, classes=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return rng.normal(size=(classes, 5))[labels] + rng.normal(size=(count, 5)), labels


def test_cross_validation_is_scikit_learns():
    features, labels = draw()
    found = predict_folds(features, labels, 5, (0.1,), seed=3)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    expected = cross_val_predict(model, features, labels, cv=StratifiedKFold(5, shuffle=True, random_state=3))
    assert (found.labels == expected).all()
    assert (found.strengths, found.unfinished) == ((0.1,) * 5, 0)
    assert 0.5 < (found.labels == labels).mean() < 1


def test_the_strength_is_chosen_in_every_fold():
    """A fold is predicted as the part for testing, with no look at its labels."""
    features, labels = np.random.default_rng(0).normal(size=(120, 5)), np.arange(120) % 3
    strengths = (1e-3, 0.03, 1.0)
    found = predict_folds(features, labels, 4, strengths, seed=0)
    assert len(set(found.strengths)) > 1
    folds = StratifiedKFold(4, shuffle=True, random_state=0).split(labels, labels)
    for strength, (train, test) in zip(found.strengths, folds, strict=True):
        part = predict_part(features, labels, train, NONE, test, strengths, seed=0)
        assert part.strengths == (strength,)
        assert (part.labels == found.labels[test]).mean() > 0.95  # the order of the examples differs


def test_a_part_for_testing():
    features, labels = draw()
    train, validation, test = np.split(np.arange(240), [120, 180])
    found = predict_part(features, labels, train, validation, test, (1e-4, 1.0), seed=0)
    fits = {
        strength: make_pipeline(StandardScaler(), LogisticRegression(C=strength)).fit(features[train], labels[train])
        for strength in (1e-4, 1.0)
    }
    best = max(fits, key=lambda strength: fits[strength].score(features[validation], labels[validation]))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=best)).fit(features[:180], labels[:180])
    assert found.strengths == (best,)
    assert (found.labels == model.predict(features[test])).all()


def test_a_share_is_held_out_where_there_is_no_validation():
    features, labels = draw()
    train, test = np.split(np.arange(240), [180])
    found = predict_part(csr_matrix(features), labels, train, NONE, test, (1e-9, 1.0), seed=0)
    assert found.strengths == (1.0,)
    expected = LogisticRegression(C=1.0).fit(features[train], labels[train])
    assert (found.labels == expected.predict(features[test])).mean() > 0.98  # the order of the examples differs


def test_fits_that_do_not_converge_are_counted(monkeypatch):
    monkeypatch.setattr(logistic, 'ITERATIONS', 1)
    features, labels = draw()
    assert predict_folds(features, labels, 2, (1.0,), seed=0).unfinished == 4


def test_no_information():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    found = predict_folds(rng.normal(size=(400, 3)), labels, 10, (0.01, 1.0), seed=0)
    assert (found.labels == labels).mean() == pytest.approx(0.5, abs=0.1)
