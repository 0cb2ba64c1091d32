"""Few-shot classification of frozen features by the nearest class centroid, over many draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dualcl_jax.evaluators.measures.rows import members
from dualcl_jax.losses import normalize

DRAWS_AT_ONCE = 8
HELD_BYTES = 2**30
"""The most memory for the scores, and for the chosen features, that are held at a time, unless one query or draw needs
more."""


def draw_shots(labels: NDArray, num_classes: int, shots: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Draws examples: for each draw, `shots` different ones of every class, int64 [draws, num_classes, shots].

    Raises:
      ValueError: a class has fewer than `shots` examples.
    """
    rng = np.random.default_rng([seed, shots])
    of_class = members(labels, np.arange(num_classes))
    fewest = min(map(len, of_class))
    if fewest < shots:
        raise ValueError(f'a class has {fewest} examples, fewer than {shots}')
    return np.stack([np.stack([rng.choice(rows, shots, replace=False) for rows in of_class]) for _ in range(draws)])


def centroid_accuracies(bank: NDArray, chosen: NDArray, queries: NDArray, query_labels: NDArray) -> NDArray[np.float64]:
    """The share of queries nearest, in cosine similarity, to the centroid of their own class, for each draw.

    A centroid is the mean of the normalised features of a class's chosen examples (after 1703.05175).

    Args:
      bank: features [N, F].
      chosen: rows of the bank [draws, C, shots], see `draw_shots`; class c has the centroid of row c.
      queries: features [Q, F].
      query_labels: [Q] integers in [0, C).

    Returns:
      accuracies [draws] in [0, 1].
    """
    _, num_classes, shots = chosen.shape
    block = min(len(queries), max(1, HELD_BYTES // (4 * num_classes)))
    draws = HELD_BYTES // (4 * num_classes * max(block, shots * bank.shape[1]))
    count = partial(_count_correct, jnp.asarray(bank), jnp.asarray(chosen), draws=min(DRAWS_AT_ONCE, max(1, draws)))
    correct = np.zeros(len(chosen))
    for start in range(0, len(queries), block):
        part, labels = queries[start : start + block], query_labels[start : start + block]
        missing = block - len(part)
        padded = np.pad(part, ((0, missing), (0, 0))), np.pad(labels, (0, missing), constant_values=-1)
        correct += np.asarray(count(*map(jnp.asarray, padded)))
    return correct / len(queries)


@partial(jax.jit, static_argnames='draws')
def _count_correct(
    bank: jax.Array, chosen: jax.Array, queries: jax.Array, labels: jax.Array, *, draws: int
) -> jax.Array:
    """Counts for each draw the queries nearest to the centroid of their class, int32; `draws` of them at a time."""
    bank, queries = normalize(bank), normalize(queries)

    def one(rows: jax.Array) -> jax.Array:
        centroids = normalize(bank[rows].mean(axis=1))
        scores = jnp.matmul(queries, centroids.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(jnp.argmax(scores, axis=1) == labels, dtype=jnp.int32)

    return jax.lax.map(one, chosen, batch_size=draws)
