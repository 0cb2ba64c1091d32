"""Logistic regression of small sets of frozen features by scikit-learn, with its strength chosen on held-out examples.

Dense features are standardised per dimension by the training examples. Sparse ones are used as they are.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

VALIDATION = 0.1
"""Share of the examples on which the strength is chosen if there are none for validation."""
ITERATIONS = 1000


class Predicted(NamedTuple):
    """Predictions for examples that were not trained on.

    Attributes:
      labels: [M], the predicted labels.
      strengths: C, the inverse of the weight of the L2 penalty, of each classifier: one, or one for each fold.
      unfinished: fits that did not converge within `ITERATIONS` iterations.
    """

    labels: NDArray
    strengths: tuple[float, ...]
    unfinished: int


def predict_part(
    features: Any,
    labels: NDArray,
    train: NDArray,
    validation: NDArray,
    test: NDArray,
    strengths: Sequence[float],
    seed: int,
) -> Predicted:
    """Predicts the rows `test` of N features by a classifier of the rows `train` and `validation`.

    The strength is the one with the best accuracy on the rows `validation` when only the rows `train` are trained on;
    on ties, the first. Without rows for validation, a share of `train` is held out by class in their place.
    """
    fit, check = (train, validation) if len(validation) else _hold_out(labels, train, seed)
    strength, unfinished = _choose(features, labels, fit, check, strengths)
    model, failed = _fit(features, labels, np.concatenate([fit, check]), strength)
    return Predicted(model.predict(features[test]), (strength,), unfinished + failed)


def predict_folds(features: Any, labels: NDArray, folds: int, strengths: Sequence[float], seed: int) -> Predicted:
    """Predicts all N examples by cross-validation, each by the classifier of the folds that it is not in.

    Folds are random and stratified by class. The strength of each classifier is chosen on a share of the examples that
    it is trained on, so that no example plays a part in its own prediction.
    """
    predicted, unfinished = np.zeros_like(labels), 0
    chosen: list[float] = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels):
        strength, failed = _choose(features, labels, *_hold_out(labels, train, seed), strengths)
        model, last = _fit(features, labels, train, strength)
        predicted[test] = model.predict(features[test])
        chosen.append(strength)
        unfinished += failed + last
    return Predicted(predicted, tuple(chosen), unfinished)


def _hold_out(labels: NDArray, rows: NDArray, seed: int) -> tuple[NDArray, NDArray]:
    """Divides rows into those to train on and a share for validation, by class."""
    fit, check = train_test_split(rows, test_size=VALIDATION, stratify=labels[rows], random_state=seed)
    return fit, check


def _choose(
    features: Any, labels: NDArray, fit: NDArray, check: NDArray, strengths: Sequence[float]
) -> tuple[float, int]:
    """The best strength on the rows `check`, and how many fits did not converge."""
    accuracies, unfinished = [], 0
    for strength in strengths:
        model, failed = _fit(features, labels, fit, strength)
        accuracies.append(model.score(features[check], labels[check]))
        unfinished += failed
    return strengths[int(np.argmax(accuracies))], unfinished


def _fit(features: Any, labels: NDArray, rows: NDArray, strength: float) -> tuple[Any, int]:
    """The classifier trained on some rows, and 1 if it did not converge, else 0."""
    model: Any = LogisticRegression(C=strength, max_iter=ITERATIONS)
    if not issparse(features):
        model = make_pipeline(StandardScaler(), model)
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):  # the same sums on every machine
        warnings.simplefilter('ignore')
        warnings.simplefilter('always', ConvergenceWarning)
        model.fit(features[rows], labels[rows])
    return model, int(any(issubclass(warning.category, ConvergenceWarning) for warning in caught))
