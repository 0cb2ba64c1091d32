"""The protocols of text: semantic similarity, retrieval of passages, and transfer to sets with classes."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from dualcl_jax.evaluators.benchmarks.classification import Classified
from dualcl_jax.evaluators.benchmarks.passages import Passages
from dualcl_jax.evaluators.benchmarks.sts import STS_B, TEST, Pairs
from dualcl_jax.evaluators.intervals import fisher, fisher_mean, normal, wilson
from dualcl_jax.evaluators.measures.logistic import predict_folds, predict_part
from dualcl_jax.evaluators.measures.sentences import own_ranks, paired_cosines, rank_correlation, reciprocal_ranks
from dualcl_jax.evaluators.measures.structure import alignment, uniformity
from dualcl_jax.evaluators.records import Result
from dualcl_jax.evaluators.sentences import SentenceFeatures, encode_all
from dualcl_jax.evaluators.task import Task

Results = Iterator[Result]

AVERAGE = 'avg7'
RANK = 10
"""k of MRR@k."""
SIMILAR = 4.0
"""Pairs of STS-B with a higher score are positive pairs for alignment (2104.08821)."""


class Distinct:
    """The distinct sentences, and the row of each sentence among them."""

    def __init__(self, *sentences: Sequence[str]) -> None:
        self._rows: dict[str, int] = {}
        for part in sentences:
            for sentence in part:
                self._rows.setdefault(sentence, len(self._rows))
        self.sentences = list(self._rows)

    def __call__(self, sentences: Sequence[str]) -> NDArray[np.int64]:
        """The rows [N] of sentences [N]."""
        return np.array([self._rows[sentence] for sentence in sentences], np.int64)


def sts(task: Task) -> Results:
    """Spearman's correlation of cosine similarity with human scores, and its mean over seven test sets.

    For STS-B also the alignment of pairs with a score above 4 and the uniformity of all sentences (2005.10242). A
    correlation is 0 if all similarities are equal; the details then note this.
    """
    sets: list[Pairs] = task.benchmarks['sts']
    rows = Distinct(*(part for pairs in sets for part in (pairs.first, pairs.second)))
    for encoded in encode_all(task, rows.sentences):
        found = [_correlation(pairs, encoded, rows) for pairs in sets]
        yield from found
        tested = [result for result in found if result.split == TEST]
        values, counts = [result.value for result in tested], [result.examples or 0 for result in tested]
        yield Result(
            'spearman',
            float(np.mean(values)),
            encoded.encoder,
            encoded.layer,
            fisher_mean(values, counts),
            examples=sum(counts),
            details=encoded.details | {'mean_of': [result.data_set for result in tested]},
            data_set=AVERAGE,
            data_fingerprint=_joined(pairs.fingerprint for pairs in sets if pairs.split == TEST),
        )
        for pairs in sets:
            if pairs.name == STS_B:
                yield from _shape(pairs, encoded, rows)


def _correlation(pairs: Pairs, encoded: SentenceFeatures, rows: Distinct) -> Result:
    first, second = (encoded.features[rows(sentences)] for sentences in (pairs.first, pairs.second))
    value, details = rank_correlation(paired_cosines(first, second), pairs.scores), dict(encoded.details)
    if math.isnan(value):
        value, details = 0.0, details | {'undefined': 'all similarities are equal'}
    if pairs.without_score:
        details['pairs_without_score'] = pairs.without_score
    return _result(pairs, encoded, 'spearman', value, len(pairs.scores), fisher(value, len(pairs.scores)), details)


def _joined(fingerprints: Iterable[str]) -> str:
    """A fingerprint of several sets."""
    return hashlib.sha256(' '.join(fingerprints).encode()).hexdigest()


def _result(
    of: Pairs | Passages | Classified,
    encoded: SentenceFeatures,
    metric: str,
    value: float,
    examples: int,
    interval: Any = None,
    details: dict[str, Any] | None = None,
    **more: Any,
) -> Result:
    """The result that holds one number for a set of sentences."""
    return Result(
        metric,
        value,
        encoded.encoder,
        encoded.layer,
        interval,
        examples=examples,
        split=getattr(of, 'split', TEST),
        details=encoded.details if details is None else details,
        data_set=of.name,
        data_fingerprint=of.fingerprint,
        **more,
    )


def _shape(pairs: Pairs, encoded: SentenceFeatures, rows: Distinct) -> Results:
    """Alignment and uniformity of STS-B."""
    similar = np.flatnonzero(pairs.scores > SIMILAR)
    used = np.unique(rows(pairs.first + pairs.second))
    features = _dense(encoded.features[used])
    first, second = (np.searchsorted(used, rows(part)[similar]) for part in (pairs.first, pairs.second))
    result = partial(_result, pairs, encoded)
    if len(similar):
        yield result('alignment', alignment(features[first], features[second]), len(similar))
    yield result('uniformity', uniformity(features), len(used))


def _dense(features: Any) -> NDArray:
    """Features as an array, without the dimensions of a sparse matrix that are 0 everywhere."""
    if not issparse(features):
        return features
    return features[:, np.unique(features.indices)].toarray()


def retrieval(task: Task) -> Results:
    """Each query's own passage among all passages: MRR@10, and recall at k (the share with a rank of at most k)."""
    found: Passages = task.benchmarks['retrieval']
    rows, ks = Distinct(found.queries, found.passages), task.settings.retrieval.recall_at
    for encoded in encode_all(task, rows.sentences):
        queries, passages = (encoded.features[rows(part)] for part in (found.queries, found.passages))
        ranks = own_ranks(queries, passages, found.own)
        details = encoded.details | {'passages': len(found.passages)}
        result = partial(_result, found, encoded, examples=len(ranks), details=details)
        gains = reciprocal_ranks(ranks, RANK)
        yield result('mrr', float(gains.mean()), interval=normal(gains), k=RANK)
        for k in ks:
            share = float(np.mean(ranks <= k))
            yield result('recall', share, interval=wilson(share, len(ranks)), k=k)


def transfer(task: Task) -> Results:
    """Accuracy of logistic regression on frozen features of sentences with classes.

    Sets with a part for testing are measured on it, the others by cross-validation over all of their examples.
    """
    sets: list[Classified] = task.benchmarks['transfer']
    settings, rows = task.settings.transfer, Distinct(*(of.sentences for of in sets))
    folds, strengths = settings.folds, tuple(settings.strengths)
    how: dict[str, Any]
    for encoded in encode_all(task, rows.sentences):
        for of in sets:
            features, parts = encoded.features[rows(of.sentences)], (of.train, of.validation, of.test)
            if len(of.test):
                predicted = predict_part(features, of.labels, *parts, strengths, task.seed)
                labels = of.labels[of.test]
                how = {'trained_on': len(of.train) + len(of.validation), 'C': predicted.strengths[0]}
            else:
                predicted = predict_folds(features, of.labels, folds, strengths, task.seed)
                labels = of.labels
                how = {'folds': folds, 'C_chosen': 'in each fold', 'C': list(predicted.strengths)}
            share = float(np.mean(predicted.labels == labels))
            details = encoded.details | how | {'classes': len(of.class_names)}
            if predicted.unfinished:
                details |= {'fits_without_convergence': predicted.unfinished}
            yield _result(of, encoded, 'top1', share, len(labels), wilson(share, len(labels)), details)
