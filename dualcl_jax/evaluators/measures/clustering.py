"""Clusters of frozen features by k-means, and how they agree with the classes."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dualcl_jax.evaluators.measures.rows import unit


class Agreement(NamedTuple):
    """The agreement of clusters with classes.

    Attributes:
      nmi: mutual information over the arithmetic mean of the entropies, in [0, 1].
      ari: adjusted Rand index (Hubert and Arabie, J. Classif. 2, 1985), at most 1, about 0 by chance.
    """

    nmi: float
    ari: float


def cluster(features: NDArray, clusters: int, *, starts: int, seed: int) -> NDArray[np.int32]:
    """The cluster of each example, [N] int32: scikit-learn's k-means on features [N, F] of length 1.

    It uses one thread, so that sums have a fixed order and two calls give the same clusters.

    Args:
      features: normalised here.
      clusters: number of clusters, at most N.
      starts: number of k-means++ initialisations; the one with the smallest inertia is taken.
      seed: seed of the initialisations.
    """
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # fewer distinct points than clusters: collapsed features
        return KMeans(clusters, n_init=starts, random_state=seed).fit_predict(unit(features))


def agreement(clusters: NDArray, labels: NDArray) -> Agreement:
    """How clusters [N] agree with labels [N]; both are integers whose values do not matter."""
    return Agreement(
        nmi=float(normalized_mutual_info_score(labels, clusters)), ari=float(adjusted_rand_score(labels, clusters))
    )
