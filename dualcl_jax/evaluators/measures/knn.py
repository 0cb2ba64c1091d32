"""Weighted k-nearest-neighbour classification of frozen features."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from numpy.typing import NDArray

from dualcl_jax.system.devices import fetched

BLOCK_BYTES = 64 * 2**20
"""The float32 similarities that one device holds at a time."""


def normalize(features: ArrayLike) -> jax.Array:
    """Normalises features [M, F] to float32 rows of length 1; a row of zeros remains zero."""
    features = jnp.asarray(features).astype(jnp.float32)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def nearest(queries: ArrayLike, bank: ArrayLike, k: int) -> tuple[jax.Array, jax.Array]:
    """The k entries of the bank with the largest cosine similarity to each query, the most similar first.

    Pure, and exact: `lax.top_k` over all N similarities in float32 (on XLA:CPU a partial sort, which costs no more than
    the matrix product). Of equally similar entries the one with the lower index comes first. A zero vector has
    similarity 0 to everything.

    Args:
      queries: features [Q, F], any real dtype and length; they are normalised here.
      bank: features [N, F], likewise.
      k: number of neighbours, at least 1; clamped to N.

    Returns:
      similarities [Q, min(k, N)] float32 in [-1, 1] up to rounding, and indices into the bank [Q, min(k, N)] int32.
    """
    similarities = jnp.einsum('qf,nf->qn', normalize(queries), normalize(bank), precision=lax.Precision.HIGHEST)
    return lax.top_k(similarities, min(k, similarities.shape[1]))


def without_query(found: NDArray, own: NDArray) -> NDArray[np.bool_]:
    """Marks the k neighbours of each query among the k + 1 nearest rows of a bank that may contain the query itself.

    The query's own row is not one of them. Where it is not found, because the bank does not contain it or more than k
    others are as near, the last row is left out instead.

    Args:
      found: [Q, k + 1], the nearest rows, the most similar first.
      own: [Q], the row of each query.

    Example:
      >>> without_query(np.array([[4, 0, 7], [5, 3, 2]]), np.array([0, 1])).tolist()
      [[True, False, True], [True, True, False]]
    """
    kept = found != own[:, None]
    kept[kept.all(axis=1), -1] = False
    return kept


def knn_scores(
    queries: ArrayLike,
    bank: ArrayLike,
    bank_labels: ArrayLike,
    *,
    k: int,
    temperature: float,
    num_classes: int,
) -> jax.Array:
    """Class scores by a weighted vote: each of the k nearest neighbours votes for its label with exp(similarity / τ).

    Source: Wu et al. 2018 (1805.01978), section 3.4, and the monitor of MoCo's CIFAR demo. Pure and jittable (k,
    temperature and num_classes static). The votes of a query are divided by their sum, which keeps a small τ from
    overflowing and changes no prediction. `knn_grid` finds the classes with the largest scores in blocks; this function
    is for callers that need the scores.

    Args:
      queries: features [Q, F], normalised here.
      bank: features [N, F], normalised here.
      bank_labels: [N] int32 in [0, num_classes); a label outside this range casts no vote.
      k: number of neighbours, clamped to N.
      temperature: τ > 0.
      num_classes: number of classes C.

    Returns:
      scores [Q, C] float32, at least 0; each row sums to 1.
    """
    similarities, indices = nearest(queries, bank, k)
    labels = jnp.asarray(bank_labels)[indices]
    return _vote(similarities, labels, temperature, jnp.arange(num_classes, dtype=labels.dtype)[None])


def _vote(similarities: jax.Array, labels: jax.Array, temperature: float, classes: jax.Array) -> jax.Array:
    """[Q, C] scores of classes [Q, C] or [1, C] from the similarities and labels of neighbours, both [Q, k]."""
    votes = jax.nn.softmax(similarities / temperature, axis=-1)

    def scores_of(vote: jax.Array, label: jax.Array) -> jax.Array:
        return jnp.where(label[:, None] == classes, vote[:, None], 0)

    # One neighbour after another, the most similar first: nothing of size [Q, k, C] is held, and, unlike in a scatter,
    # the order of the sum is fixed.
    first, others = scores_of(votes[:, 0], labels[:, 0]), (votes[:, 1:].T, labels[:, 1:].T)
    return lax.scan(lambda scores, other: (scores + scores_of(*other), None), first, others, unroll=4)[0]


def knn_predict(
    queries: NDArray,
    bank: NDArray,
    bank_labels: NDArray,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    block: int | None = None,
) -> NDArray[np.int32]:
    """The class with the largest of `knn_scores` for each query, [Q] int32: `knn_grid` of one k and one temperature."""
    grid = knn_grid(
        queries, bank, bank_labels, ks=(k,), temperatures=(temperature,), num_classes=num_classes, block=block
    )
    return grid[0, 0]


def knn_grid(
    queries: NDArray,
    bank: NDArray,
    bank_labels: NDArray,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
    block: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.int32]:
    """The class with the largest of `knn_scores` for each query, k and temperature; the lower class on ties.

    Works through the queries in blocks, so that [Q, N] is never held, and finds neighbours once for the whole grid.
    A block is split over the local devices and the bank is copied to each. Other processes are not involved: each
    computes the same from the same arrays.

    Args:
      queries: features [Q, F].
      bank: features [N, F].
      bank_labels: [N] integers in [0, num_classes).
      ks: numbers of neighbours, each at least 1; clamped to N.
      temperatures: each τ > 0.
      num_classes: number of classes.
      block: queries at a time over all local devices, rounded up to a multiple of their number; by default as many
          as keep the similarities on one device within `BLOCK_BYTES`.
      advance: called after every block, of which there are `num_blocks(Q, N)` by default.

    Returns:
      classes [len(ks), len(temperatures), Q] int32.

    Raises:
      ValueError: shapes that do not fit, an empty array, features that are not finite, a label outside
          [0, num_classes) (-1 means unlabelled), or k, temperature or block not positive.
    """
    queries, bank, bank_labels = np.asarray(queries), np.asarray(bank), np.asarray(bank_labels)
    _check_features('queries', queries)
    _check_features('bank', bank)
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(f'queries have {queries.shape[1]} features and the bank {bank.shape[1]}: they must agree')
    _check_labels('bank_labels', bank_labels, len(bank), num_classes)
    if min(ks) < 1 or min(temperatures) <= 0 or (block is not None and block < 1):
        raise ValueError(f'k, temperature and block must be positive, got {ks}, {temperatures} and {block}')

    devices = jax.local_devices()
    mesh = Mesh(np.asarray(devices), ('devices',))
    split = NamedSharding(mesh, PartitionSpec('devices'))
    replicated = NamedSharding(mesh, PartitionSpec())
    bank_on_devices = jax.device_put(bank, replicated)
    labels_on_devices = jax.device_put(bank_labels.astype(np.int32), replicated)
    predict = functools.partial(
        _predict_block, mesh=mesh, ks=tuple(ks), temperatures=tuple(temperatures), num_classes=num_classes
    )

    block = len(devices) * math.ceil(min(block or _block(len(bank)), len(queries)) / len(devices))
    starts = range(0, len(queries), block)
    parts = (queries[start : start + block] for start in starts)
    padded = (np.pad(part, ((0, block - len(part)), (0, 0))) for part in parts)  # one shape, one compilation
    predictions = []
    for found in fetched(predict(jax.device_put(part, split), bank_on_devices, labels_on_devices) for part in padded):
        predictions.append(found)
        advance()
    return np.concatenate(predictions, axis=2)[:, :, : len(queries)]


def num_blocks(num_queries: int, num_bank: int) -> int:
    """How many blocks of queries `knn_grid` works through by default."""
    return math.ceil(num_queries / min(_block(num_bank), num_queries))


def _block(num_bank: int) -> int:
    devices = len(jax.local_devices())
    return devices * max(1, BLOCK_BYTES // (4 * num_bank))


def knn_top1(
    queries: NDArray,
    query_labels: NDArray,
    bank: NDArray,
    bank_labels: NDArray,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    block: int | None = None,
) -> float:
    """The fraction of queries, in [0, 1], whose label `knn_predict` finds.

    Args:
      queries: features [Q, F].
      query_labels: [Q] integers in [0, num_classes).
      bank, bank_labels, k, temperature, num_classes, block: see `knn_predict`.

    Raises:
      ValueError: as `knn_predict`, and for query labels outside [0, num_classes) or not as many as queries.
    """
    query_labels = np.asarray(query_labels)
    _check_labels('query_labels', query_labels, len(queries), num_classes)
    predictions = knn_predict(
        queries, bank, bank_labels, k=k, temperature=temperature, num_classes=num_classes, block=block
    )
    return float(np.mean(predictions == query_labels))


@functools.partial(jax.jit, static_argnames=('mesh', 'ks', 'temperatures', 'num_classes'))
def _predict_block(
    queries: jax.Array,
    bank: jax.Array,
    bank_labels: jax.Array,
    *,
    mesh: Mesh,
    ks: tuple[int, ...],
    temperatures: tuple[float, ...],
    num_classes: int,
) -> jax.Array:
    def predict(queries: jax.Array, bank: jax.Array, bank_labels: jax.Array) -> jax.Array:
        similarities, indices = nearest(queries, bank, max(ks))
        labels = bank_labels[indices]

        def best(k: int, temperature: float) -> jax.Array:
            # One of the neighbours' classes has the largest score: where they are fewer, the others are not scored.
            classes = labels[:, :k] if k < num_classes else jnp.arange(num_classes, dtype=jnp.int32)[None]
            scores = _vote(similarities[:, :k], labels[:, :k], temperature, classes)
            largest = scores == jnp.max(scores, axis=-1, keepdims=True)
            return jnp.min(jnp.where(largest, classes, num_classes), axis=-1)

        return jnp.stack([jnp.stack([best(k, temperature) for temperature in temperatures]) for k in ks])

    # A jit over sharded queries would suffice, but XLA then gathers all similarities on every device for its top-k.
    split, replicated = PartitionSpec('devices'), PartitionSpec()
    return jax.shard_map(
        predict, mesh=mesh, in_specs=(split, replicated, replicated), out_specs=PartitionSpec(None, None, 'devices')
    )(queries, bank, bank_labels)


def _check_features(name: str, features: NDArray) -> None:
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f'{name} must be a non-empty array [examples, features], got shape {features.shape}')
    if not np.isfinite(features).all():
        raise ValueError(f'{name} holds values that are not finite: the encoder has diverged')


def _check_labels(name: str, labels: NDArray, count: int, num_classes: int) -> None:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'{name} must be {count} integers, got shape {labels.shape} of {labels.dtype}')
    if count and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f'{name} must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}: '
            'leave examples without a label (-1) out'
        )
