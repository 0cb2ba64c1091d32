"""Measurements while a run trains: of the encoder's features, and once of a baseline for comparison."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data import Source, Splits
from dualcl_jax.data.text.tokens import Tokenizer
from dualcl_jax.evaluators.benchmarks.sts import Pairs
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.measures.knn import knn_predict
from dualcl_jax.evaluators.measures.sentences import paired_cosines, rank_correlation
from dualcl_jax.evaluators.sentences import embed_sentences, tf_idf, training_texts
from dualcl_jax.method.resolve import LEFT_OUT
from dualcl_jax.workdir.metrics import KNN, STS


class Monitor(Protocol):
    """Measures encoders while a run trains. It changes nothing. Every process must call it."""

    def references(self) -> dict[str, float]:
        """The values of baselines without an encoder, by the name of the metric."""
        ...

    def encoder(self, variables: Any) -> dict[str, float]:
        """The values of an encoder, by the name of the metric."""
        ...


class KnnMonitor:
    """Classifies the test examples of `queries` by their nearest labelled training examples.

    Args:
      embed: computes features.
      splits: the data; see `can_monitor`.
      k: number of neighbours.
      temperature: a vote has the weight exp(cosine / temperature).
      bank: the most training images to use; 0 for all. A fixed random subset, the same for everything compared.
      unseen: what to do with test examples of classes without training examples, see `queries`.
    """

    def __init__(
        self, embed: Embedder, splits: Splits, *, k: int, temperature: float, bank: int, unseen: str = LEFT_OUT
    ) -> None:
        assert splits.test is not None
        self._embed, self._train, self._test = embed, splits.train, splits.test
        labelled = np.flatnonzero(splits.train.labels >= 0)
        if 0 < bank < len(labelled):
            labelled = np.sort(np.random.default_rng(0).permutation(labelled)[:bank])
        self.bank_indices = labelled
        self.query_indices = queries(splits, unseen)
        self._bank_labels, self._query_labels = splits.train.labels[labelled], splits.test.labels[self.query_indices]
        self._k, self._temperature = k, temperature

    def encoder(self, variables: Any) -> dict[str, float]:
        """Accuracies in [0, 1] of an encoder's backbone and projection."""
        bank = self._embed(variables, self._train, self.bank_indices)
        queries = self._embed(variables, self._test, self.query_indices)
        return {
            KNN.backbone: self._top1(bank.backbone, queries.backbone),
            KNN.projection: self._top1(bank.projection, queries.projection),
        }

    def references(self) -> dict[str, float]:
        """Accuracy in [0, 1] of the pixels themselves, standardised per channel as the encoder sees them.

        Empty for examples without such vectors.
        """
        bank = self._embed.raw(self._train, self.bank_indices)
        queries = self._embed.raw(self._test, self.query_indices)
        if bank is None or queries is None:
            return {}
        return {KNN.baseline: self._top1(bank, queries)}

    def _top1(self, bank: np.ndarray, queries: np.ndarray) -> float:
        predicted = knn_predict(
            queries,
            bank,
            self._bank_labels,
            k=self._k,
            temperature=self._temperature,
            num_classes=int(self._bank_labels.max()) + 1,
        )
        return float(np.mean(predicted == self._query_labels))


class StsMonitor:
    """Spearman's correlation of cosine similarity with human scores, on STS-B dev. No other file is read.

    It is NaN if all similarities are equal.

    Args:
      embed: computes features.
      tokenizer: tokenizer of the run.
      pairs: STS-B dev.
      train: the training split, whose texts provide the frequencies of words for TF-IDF.
    """

    def __init__(self, embed: Embedder, tokenizer: Tokenizer, pairs: Pairs, train: Source) -> None:
        self._embed, self._tokenizer, self._pairs, self._train = embed, tokenizer, pairs, train
        self._sentences = [*pairs.first, *pairs.second]

    def encoder(self, variables: Any) -> dict[str, float]:
        """Correlations in [-1, 1] of an encoder's backbone and projection."""

        def embed(examples: Source, rows: NDArray[np.int64]) -> Mapping[str, np.ndarray]:
            return self._embed(variables, examples, rows)._asdict()

        found = embed_sentences(self._tokenizer, self._sentences, embed)
        return {
            STS.backbone: self._correlation(found['backbone']),
            STS.projection: self._correlation(found['projection']),
        }

    def references(self) -> dict[str, float]:
        """The correlation in [-1, 1] of TF-IDF."""
        return {STS.baseline: self._correlation(tf_idf(self._sentences, training_texts(self._train)))}

    def _correlation(self, features: Any) -> float:
        count = len(self._pairs.scores)
        return rank_correlation(paired_cosines(features[:count], features[count:]), self._pairs.scores)


def queries(splits: Splits, unseen: str) -> NDArray[np.int64]:
    """The test examples that are classified, int64 [Q]: those with a label, and without a test split none.

    With `unseen` 'left_out' their classes must have training examples, as in evaluations. With 'wrong' they need not;
    such examples count as wrong.
    """
    if splits.test is None:
        return np.empty(0, np.int64)
    labels = splits.test.labels
    return np.flatnonzero((labels >= 0) & (np.isin(labels, splits.train.labels) | (unseen != LEFT_OUT)))


def can_monitor(splits: Splits, unseen: str = LEFT_OUT) -> bool:
    """Whether there are labelled training examples, and test examples to classify by them, see `queries`."""
    return bool((splits.train.labels >= 0).any()) and len(queries(splits, unseen)) > 0
