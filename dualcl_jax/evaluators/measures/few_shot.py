"""Few-shot classification of frozen features by the nearest class centroid, over many draws."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dualcl_jax.evaluators.measures.knn import normalize

DRAWS_AT_ONCE = 8


def draw_shots(labels: NDArray, num_classes: int, shots: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Draws examples: for each draw, `shots` different ones of every class, int64 [draws, num_classes, shots].

    Raises:
      ValueError: a class has fewer than `shots` examples.
    """
    rng = np.random.default_rng([seed, shots])
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    fewest = min(map(len, members))
    if fewest < shots:
        raise ValueError(f'a class has {fewest} examples, fewer than {shots}')
    return np.stack([np.stack([rng.choice(rows, shots, replace=False) for rows in members]) for _ in range(draws)])


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
    correct = _count_correct(jnp.asarray(bank), jnp.asarray(chosen), jnp.asarray(queries), jnp.asarray(query_labels))
    return np.asarray(correct, np.float64) / len(queries)


@jax.jit
def _count_correct(bank: jax.Array, chosen: jax.Array, queries: jax.Array, labels: jax.Array) -> jax.Array:
    bank, queries = normalize(bank), normalize(queries)

    def one(rows: jax.Array) -> jax.Array:
        centroids = normalize(bank[rows].mean(axis=1))
        scores = jnp.matmul(queries, centroids.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(jnp.argmax(scores, axis=1) == labels, dtype=jnp.int32)

    return jax.lax.map(one, chosen, batch_size=DRAWS_AT_ONCE)
