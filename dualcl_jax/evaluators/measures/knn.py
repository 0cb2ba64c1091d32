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

from dualcl_jax.losses import cosine, normalize
from dualcl_jax.system.devices import fetched

BLOCK_BYTES = 64 * 2**20
"""The float32 similarities that one device holds at a time."""
BLOCK_ROWS = 1024
"""Rows that `nearest_others` compares with all rows at a time."""


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
    similarities = cosine(normalize(jnp.asarray(queries)), normalize(jnp.asarray(bank)))
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


def nearest_others(
    features: NDArray, k: int, advance: Callable[[], None] = lambda: None
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The nearest other rows of each row, by cosine similarity, the most similar first.

    Args:
      features: [N, F], normalised here; N at least 2.
      k: number of neighbours, clamped to N - 1.
      advance: called after each block of `BLOCK_ROWS` rows.

    Returns:
      similarities [N, k] and rows [N, k].
    """
    count, k = len(features), min(k, len(features) - 1)
    bank = jnp.asarray(features)
    similarities, rows = np.empty((count, k), np.float32), np.empty((count, k), np.int32)
    for start in range(0, count, BLOCK_ROWS):
        block = features[start : start + BLOCK_ROWS]
        padded = np.pad(block, ((0, min(BLOCK_ROWS, count) - len(block)), (0, 0)))
        values, found = (np.asarray(part)[: len(block)] for part in _nearest(padded, bank, k + 1))
        kept = without_query(found, np.arange(start, start + len(block)))
        similarities[start : start + len(block)] = values[kept].reshape(-1, k)
        rows[start : start + len(block)] = found[kept].reshape(-1, k)
        advance()
    return similarities, rows


_nearest = jax.jit(nearest, static_argnums=2)


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
) -> NDArray[np.int32]:
    """The predicted class of each query, [Q] int32: `knn_grid` of one k and one temperature."""
    return knn_grid(queries, bank, bank_labels, ks=(k,), temperatures=(temperature,), num_classes=num_classes)[0, 0]


def knn_grid(
    queries: NDArray,
    bank: NDArray,
    bank_labels: NDArray,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.int32]:
    """The predicted class of each query, for each k and temperature; the lower class on ties.

    Each of the k nearest neighbours votes for its label with exp(similarity / τ) (Wu et al. 2018, 1805.01978, section
    3.4, and the monitor of MoCo's CIFAR demo). The votes of a query are divided by their sum, which keeps a small τ
    from overflowing and changes no prediction.

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
      advance: called after each of `knn_blocks(Q, N)` blocks.

    Returns:
      classes [len(ks), len(temperatures), Q] int32.

    Raises:
      ValueError: shapes that do not fit, an empty array, features that are not finite, a label outside
          [0, num_classes) (-1 means unlabelled), or k or temperature not positive.
    """
    queries, bank, bank_labels = np.asarray(queries), np.asarray(bank), np.asarray(bank_labels)
    _check_features('queries', queries)
    _check_features('bank', bank)
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(f'queries have {queries.shape[1]} features and the bank {bank.shape[1]}: they must agree')
    _check_labels(bank_labels, len(bank), num_classes)
    if min(ks) < 1 or min(temperatures) <= 0:
        raise ValueError(f'k and temperature must be positive, got {ks} and {temperatures}')

    devices = jax.local_devices()
    mesh = Mesh(np.asarray(devices), ('devices',))
    split = NamedSharding(mesh, PartitionSpec('devices'))
    replicated = NamedSharding(mesh, PartitionSpec())
    bank_on_devices = jax.device_put(bank, replicated)
    labels_on_devices = jax.device_put(bank_labels.astype(np.int32), replicated)
    predict = functools.partial(
        _predict_block, mesh=mesh, ks=tuple(ks), temperatures=tuple(temperatures), num_classes=num_classes
    )

    block = len(devices) * math.ceil(min(_block(len(bank)), len(queries)) / len(devices))
    starts = range(0, len(queries), block)
    parts = (queries[start : start + block] for start in starts)
    padded = (np.pad(part, ((0, block - len(part)), (0, 0))) for part in parts)  # one shape, one compilation
    predictions = []
    for found in fetched(predict(jax.device_put(part, split), bank_on_devices, labels_on_devices) for part in padded):
        predictions.append(found)
        advance()
    return np.concatenate(predictions, axis=2)[:, :, : len(queries)]


def knn_blocks(num_queries: int, num_bank: int) -> int:
    """How many blocks of queries `knn_grid` works through."""
    return math.ceil(num_queries / min(_block(num_bank), num_queries))


def _block(num_bank: int) -> int:
    devices = len(jax.local_devices())
    return devices * max(1, BLOCK_BYTES // (4 * num_bank))


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


def _check_labels(labels: NDArray, count: int, num_classes: int) -> None:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'bank_labels must be {count} integers, got shape {labels.shape} of {labels.dtype}')
    if not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f'bank_labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}: '
            'leave examples without a label (-1) out'
        )
