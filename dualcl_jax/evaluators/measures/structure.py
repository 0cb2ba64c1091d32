"""The structure of the embedding of a set: alignment, uniformity, rank, spread, and the arrangement of classes.

Every measure except the rank uses features normalised to length 1, as the loss does.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dualcl_jax.evaluators.measures.knn import nearest_others
from dualcl_jax.evaluators.measures.rows import members, unit

BLOCK_ROWS = 512
ENTROPY_FLOOR = 1e-7


def _unit(features: NDArray) -> NDArray[np.float64]:
    return unit(np.asarray(features, np.float64))


def alignment(first: NDArray, second: NDArray) -> float:
    """Mean squared distance of the features [N, F] of two views of N examples, in [0, 4] (2005.10242, eq. 6, α = 2)."""
    return float(np.mean(np.sum((_unit(first) - _unit(second)) ** 2, axis=1)))


def uniformity(features: NDArray) -> float:
    """log of the mean of exp(-2 ‖x - y‖²) over all pairs of different examples (2005.10242, eq. 7, t = 2): [-8, 0].

    Lower is more uniform; 0 if all features are equal, also if they are all zero. The features are [N, F], with N at
    least 2.
    """
    rows, count = _unit(features).astype(np.float32), len(features)
    numbers = np.arange(count + -count % BLOCK_ROWS, dtype=np.int32).reshape(-1, BLOCK_ROWS)
    total = np.sum(np.asarray(_potentials(jnp.asarray(rows), jnp.asarray(numbers)), np.float64)[:count])
    return float(np.log(total / (count * (count - 1))))


@jax.jit
def _potentials(rows: jax.Array, numbers: jax.Array) -> jax.Array:
    """Σ exp(-2 ‖x - y‖²) over the other rows y, for the rows x of each block of `numbers`.

    The rows [N, F] have length 1 or 0. For numbers beyond the last row, the result is meaningless.
    """
    lengths = jnp.any(rows != 0, axis=1).astype(rows.dtype)

    def block(queries: jax.Array) -> jax.Array:
        cosines = jnp.matmul(rows[queries], rows.T, precision=jax.lax.Precision.HIGHEST)
        squares = lengths[queries][:, None] + lengths[None]
        potential = jnp.exp(-2.0 * jnp.maximum(squares - 2.0 * cosines, 0.0))
        others = queries[:, None] != jnp.arange(rows.shape[0], dtype=jnp.int32)[None]
        return jnp.where(others, potential, 0.0).sum(axis=1)

    return jax.lax.map(block, numbers).reshape(-1)


def effective_rank(features: NDArray) -> float:
    """RankMe of features [N, F] as they are: exp of the entropy of the singular values' shares (2210.02885, eq. 2).

    It ranges from 1, if all features lie on one line, to min(N, F). The singular values come from the covariance-like
    FᵀF in float64, so that N may be large.
    """
    features = np.asarray(features, np.float64)
    gram = features.T @ features if features.shape[0] >= features.shape[1] else features @ features.T
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    shares = singular / max(singular.sum(), np.finfo(np.float64).tiny) + ENTROPY_FLOOR
    return float(np.exp(-np.sum(shares * np.log(shares))))


def std_per_dimension(features: NDArray) -> NDArray[np.float64]:
    """Standard deviation of each dimension [F] times √F: 1 where the sphere is filled evenly, 0 where collapsed.

    (2011.10566, §4.1, there without the factor.)
    """
    return _unit(features).std(axis=0) * np.sqrt(features.shape[1])


def purity(features: NDArray, labels: NDArray, k: int) -> NDArray[np.float64]:
    """How many of each example's k nearest other examples are of its class, as a share of the most that can be.

    That is min(k, n) for a class with n other examples: 1 if they are the nearest ones, also in small classes. Images
    that are alone in their class are left out.

    Args:
      features: [N, F].
      labels: integers [N]; a class has at least two examples.
      k: number of neighbours, clamped to N - 1.

    Returns:
      [M] in [0, 1], for the M examples with others of their class.
    """
    k = min(k, len(features) - 1)
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    others = sizes[group] - 1
    same = labels[nearest_others(features, k)[1]] == labels[:, None]
    return (same.sum(axis=1) / np.clip(others, 1, k))[others > 0]


def class_distances(features: NDArray, labels: NDArray) -> tuple[float, float]:
    """Mean cosine distance 1 - x·y of pairs of different examples of one class, and of pairs of different classes.

    It takes features [N, F] and labels [N] with pairs of both kinds, and is exact, from sums over classes in float64.
    The distance from a row of zeros is 1.
    """
    rows = _unit(features)
    classes, sizes = np.unique(labels, return_counts=True)
    sums, counts = np.stack([rows[of_class].sum(axis=0) for of_class in members(labels, classes)]), sizes.astype(float)
    squares = np.sum(rows**2)
    within_pairs = np.sum(counts * (counts - 1))
    between_pairs = len(rows) ** 2 - np.sum(counts**2)
    within = np.sum(sums**2) - squares
    between = np.sum(np.sum(sums, axis=0) ** 2) - np.sum(sums**2)
    return float(1 - within / within_pairs), float(1 - between / between_pairs)
