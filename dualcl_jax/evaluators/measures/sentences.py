"""Measures of sentence embeddings: agreement with human similarity, and the rank of a query's own passage.

Features are dense arrays [N, F] or sparse SciPy matrices in CSR format.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.evaluators.measures.rows import unit

DECIMALS = 6
"""Decimals of similarities; those of float32 features are accurate to about this many."""
BLOCK_BYTES = 64 * 2**20
"""The similarities that are held at a time."""


def issparse(features: Any) -> bool:
    """Whether features are a sparse matrix."""
    from scipy import sparse  # takes a tenth of a second, so only when used

    return bool(sparse.issparse(features))


def unit_rows(features: Any) -> Any:
    """Normalises features to length 1 in float64, dense or sparse as they were; a row of zeros remains zero."""
    if not issparse(features):
        return unit(np.asarray(features, np.float64))
    from sklearn.preprocessing import normalize  # likewise

    return normalize(features.astype(np.float64))


def paired_cosines(first: Any, second: Any) -> NDArray[np.float64]:
    """Cosine similarity [N] of row n of one set of features with row n of the other."""
    one, other = unit_rows(first), unit_rows(second)
    if issparse(one):
        return np.asarray(one.multiply(other).sum(axis=1)).ravel()
    return np.einsum('nf,nf->n', one, other)


def rank_correlation(similarities: NDArray, scores: NDArray) -> float:
    """Spearman's rank correlation of N similarities with N scores, in [-1, 1]; ties get their mean rank.

    Similarities are rounded to `DECIMALS`, so that the rounding errors of float32 features do not order equal ones.
    The result is NaN if all of them are then equal, as for a collapsed encoder.
    """
    from scipy.stats import spearmanr

    rounded = np.round(similarities, DECIMALS)
    if np.ptp(rounded) == 0 or np.ptp(scores) == 0:
        return math.nan
    return float(spearmanr(rounded, scores).statistic)


def own_ranks(queries: Any, passages: Any, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank, from 1, of each query's own passage by cosine similarity among all passages.

    Of equally similar passages the one with the lower index comes first.

    Args:
      queries: features of Q queries.
      passages: features of P passages.
      own: [Q], the index of each query's passage.
    """
    rows, columns = unit_rows(queries), unit_rows(passages)
    ranks, block = np.zeros(len(own), np.int64), max(1, BLOCK_BYTES // (8 * columns.shape[0]))
    earlier = np.arange(columns.shape[0])
    for start in range(0, len(own), block):
        mine = own[start : start + block, None]
        similarities = rows[start : start + block] @ columns.T
        similarities = similarities.toarray() if issparse(similarities) else similarities
        bar = np.take_along_axis(similarities, mine, axis=1)
        before = (similarities > bar) | ((similarities == bar) & (earlier[None] < mine))
        ranks[start : start + block] = 1 + before.sum(axis=1)
    return ranks


def reciprocal_ranks(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """1 / rank [Q], or 0 for ranks above k; their mean is MRR@k."""
    return np.where(ranks <= k, 1 / ranks, 0.0)
