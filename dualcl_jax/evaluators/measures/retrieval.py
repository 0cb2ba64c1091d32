"""Image retrieval by cosine similarity: mean average precision and recall at k."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dualcl_jax.evaluators.measures.rows import members
from dualcl_jax.losses import cosine, normalize
from dualcl_jax.system.machine import available_cores

BLOCK_BYTES = 64 * 2**20
"""The float32 similarities held at a time."""


class Retrieval(NamedTuple):
    """The results of Q queries: `average_precision` [Q] float64, and `found` [len(ks), Q] bool.

    A query whose class is not in the bank has average precision 0.
    """

    average_precision: NDArray[np.float64]
    found: NDArray[np.bool_]


def retrieval_blocks(num_queries: int, num_bank: int) -> int:
    """How many blocks of queries `retrieve` works through."""
    return -(-num_queries // _block(num_bank))


def retrieve(
    queries: NDArray,
    query_labels: NDArray,
    bank: NDArray,
    bank_labels: NDArray,
    *,
    ks: Sequence[int],
    advance: Callable[[], None] = lambda: None,
) -> Retrieval:
    """Ranks the whole bank for every query; the entries of the query's class are relevant.

    Average precision is the mean, over the relevant entries, of the precision among all entries at least as similar:
    Σ (R_n - R_{n-1}) P_n over the distinct similarities, as scikit-learn defines it. `found` is whether at least one of
    the k most similar is relevant (recall at k of 1511.06452); of equally similar ones, the lower index comes first.

    Args:
      queries: features [Q, F], normalised here.
      query_labels: [Q] integers.
      bank: features [N, F], normalised here.
      bank_labels: [N] integers.
      ks: each at least 1; clamped to N.
      advance: called after each of `retrieval_blocks(Q, N)` blocks.
    """
    bank_on_device, block = jnp.asarray(bank), min(_block(len(bank)), len(queries))
    classes = np.unique(query_labels)
    of_class = dict(zip(classes.tolist(), members(bank_labels, classes), strict=True))
    precision, found = np.zeros(len(queries)), np.zeros((len(ks), len(queries)), bool)

    def rank(similarities: NDArray, start: int, row: int) -> None:
        relevant = of_class[query_labels[start + row]]
        if not len(relevant):
            return
        ranked, hits = np.sort(similarities[row]), np.sort(similarities[row, relevant])
        above = len(ranked) - np.searchsorted(ranked, hits, 'left')
        hits_above = len(hits) - np.searchsorted(hits, hits, 'left')
        precision[start + row] = np.mean(hits_above / above)

    with ThreadPoolExecutor(available_cores()) as threads:  # NumPy's sort is vectorised and releases the GIL
        for start in range(0, len(queries), block):
            part = queries[start : start + block]
            padded = np.pad(part, ((0, block - len(part)), (0, 0)))
            similarities, nearest = map(np.asarray, _similar(padded, bank_on_device, k=min(max(ks), len(bank))))
            same = bank_labels[nearest[: len(part)]] == query_labels[start : start + len(part), None]
            for index, k in enumerate(ks):
                found[index, start : start + len(part)] = same[:, :k].any(axis=1)
            for _ in threads.map(functools.partial(rank, similarities, start), range(len(part))):
                pass
            advance()
    return Retrieval(precision, found)


@functools.partial(jax.jit, static_argnames='k')
def _similar(queries: jax.Array, bank: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """All cosine similarities [q, N], and the indices of the k largest of each row."""
    similarities = cosine(normalize(queries), normalize(bank))
    return similarities, jax.lax.top_k(similarities, k)[1]


def _block(num_bank: int) -> int:
    return max(1, BLOCK_BYTES // (4 * num_bank))
