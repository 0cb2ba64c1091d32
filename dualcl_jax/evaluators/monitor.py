"""kNN accuracy while a run trains: of the encoder's features, and of raw pixels for comparison."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dualcl_jax.data import Splits
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.measures.knn import knn_top1
from dualcl_jax.workdir.metrics import KNN_BACKBONE


class KnnMonitor:
    """Classifies the labelled test images by their nearest labelled training images. It changes nothing.

    Args:
      embed: makes features.
      splits: the data; both splits need labels.
      k: neighbours.
      temperature: votes weigh exp(cosine / temperature).
      bank: at most so many training images; 0 for all. The same fixed random subset for everything that is compared.
    """

    def __init__(self, embed: Embedder, splits: Splits, *, k: int, temperature: float, bank: int) -> None:
        assert splits.test is not None
        self._embed, self._train, self._test = embed, splits.train, splits.test
        labelled = np.flatnonzero(splits.train.labels >= 0)
        if 0 < bank < len(labelled):
            labelled = np.sort(np.random.default_rng(0).permutation(labelled)[:bank])
        self.bank_indices = labelled
        self.query_indices = np.flatnonzero(splits.test.labels >= 0)
        bank_labels, query_labels = splits.train.labels[labelled], splits.test.labels[self.query_indices]
        self._top1: Callable[[np.ndarray, np.ndarray], float] = lambda bank, queries: knn_top1(
            queries,
            query_labels,
            bank,
            bank_labels,
            k=k,
            temperature=temperature,
            num_classes=int(max(bank_labels.max(), query_labels.max())) + 1,
        )

    def encoder(self, variables: Any) -> dict[str, float]:
        """Accuracies in [0, 1] of an encoder's backbone and projection."""
        bank = self._embed(variables, self._train, self.bank_indices)
        queries = self._embed(variables, self._test, self.query_indices)
        return {
            KNN_BACKBONE: self._top1(bank.backbone, queries.backbone),
            'monitor/knn_top1_projection': self._top1(bank.projection, queries.projection),
        }

    def raw_pixels(self) -> dict[str, float]:
        """Accuracy in [0, 1] of the pixels themselves, standardised per channel as the encoder sees them.

        Empty for examples without such vectors.
        """
        bank = self._embed.raw(self._train, self.bank_indices)
        queries = self._embed.raw(self._test, self.query_indices)
        if bank is None or queries is None:
            return {}
        return {'monitor/knn_top1_raw_pixels': self._top1(bank, queries)}


def can_monitor(splits: Splits) -> bool:
    """Whether both splits have labels."""
    return splits.test is not None and bool((splits.train.labels >= 0).any() and (splits.test.labels >= 0).any())
