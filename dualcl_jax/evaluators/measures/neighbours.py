"""Near duplicates and outliers among N examples, by the similarity of their features.

Features of a network share a large common part, so that all their cosines are high. Here the mean over the examples is
subtracted first, unless there are only two or all are equal, and a similarity is the cosine of what remains. An encoder
that has learned little, or much that does not depend on details, gives a high similarity to many images that are not
copies. For images, the similarity of a pair is therefore the smaller of that cosine and the correlation of their
pixels, reduced to 16×16 (ours).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data.images.source import is_photographic
from dualcl_jax.evaluators.measures import knn
from dualcl_jax.evaluators.measures.rows import unit

REDUCED = 16
"""Side in pixels at which two images are compared."""
REDUCED_AT_ONCE = 1024
"""Images that are reduced at a time."""
NEIGHBOURS = 10
"""How many nearest neighbours an outlier is far from, and how many near duplicates a row has at most."""
ROUNDING = 2e-6
"""Relative differences of features, and differences of cosines, up to this one are those of rounding."""


class Neighbours(NamedTuple):
    """The nearest other rows of each row: similarities float32 [N, k], the largest first, and their rows int32 [N, k].

    k is `NEIGHBOURS`, or N - 1 if that is less.
    """

    similarities: NDArray
    rows: NDArray


class Pairs(NamedTuple):
    """Pairs of rows, the most similar first: `first` and `second` int64 [P], first < second; similarities float32."""

    first: NDArray
    second: NDArray
    similarities: NDArray


def num_blocks(count: int) -> int:
    """The number of blocks in which `nearest_others` takes `count` rows."""
    return -(-count // knn.BLOCK_ROWS)


def nearest_others(features: NDArray, advance: Callable[[], None] = lambda: None) -> Neighbours:
    """The nearest other rows of each row of features [N, F], N at least 2; `advance` is called after each block."""
    return Neighbours(*knn.nearest_others(_centred(features), NEIGHBOURS, advance))


def _centred(features: NDArray) -> NDArray:
    """Features [N, F] without the part that all rows share, if N rows suffice to distinguish it from that of one row.

    Nothing is subtracted from two rows, whose remainders are opposite, nor from rows that are all equal.
    """
    remainder = features - features.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    equal = np.abs(remainder).max() <= ROUNDING * np.abs(features).max()
    return features if len(features) == 2 or equal else remainder


def near_duplicates(neighbours: Neighbours, threshold: float) -> Pairs:
    """The pairs of rows whose similarity is at least `threshold`, in [-1, 1], up to `ROUNDING`.

    Similarities that rounding has made larger than 1 are 1.
    """
    rows, columns = np.nonzero(neighbours.similarities >= threshold - ROUNDING)
    others = neighbours.rows[rows, columns].astype(np.int64)
    values = np.minimum(neighbours.similarities[rows, columns], 1)
    pairs = np.stack([np.minimum(rows, others), np.maximum(rows, others)], axis=1)
    pairs, at = np.unique(pairs, axis=0, return_index=True)
    order = np.argsort(-values[at], kind='stable')
    return Pairs(pairs[order, 0], pairs[order, 1], values[at][order])


def outlier_scores(neighbours: Neighbours) -> NDArray:
    """How unusual each row is, float64 [N]: the difference of its distance from the median, in standard deviations.

    The distance is 1 minus the mean similarity to the nearest neighbours. The standard deviation of a normal
    distribution is estimated as 1.4826 times the median of the absolute deviations, so that outliers do not change it.
    If at least half of the distances are equal, as in a set with many copies, that median is 0, and the estimate is
    1.2533 times the mean of the absolute deviations. All scores are 0 if all distances are equal.
    """
    distance = 1 - neighbours.similarities.mean(axis=1, dtype=np.float64)
    centre = np.median(distance)
    away = np.abs(distance - centre)
    if away.max() <= ROUNDING:
        return np.zeros(len(distance))
    middle = np.median(away)
    return (distance - centre) / (1.4826 * middle if middle > ROUNDING else 1.2533 * away.mean())


def confirmed(pairs: Pairs, threshold: float, images_at: Callable[[NDArray], NDArray]) -> Pairs:
    """The pairs whose images are also similar in their pixels, the most similar first.

    Args:
      pairs: pairs found by their features.
      threshold: the least similarity of a pair, up to `ROUNDING`.
      images_at: returns the images [n, H, W, C] at some rows [n].

    Returns:
      Pairs with the smaller of both similarities.
    """
    rows, places = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
    blocks = [
        reduced(images_at(rows[start : start + REDUCED_AT_ONCE])) for start in range(0, len(rows), REDUCED_AT_ONCE)
    ]
    if not blocks:
        return pairs
    first, second = places.reshape(2, -1)
    values = np.minimum(pairs.similarities, _correlations(np.concatenate(blocks), first, second))
    kept = np.flatnonzero(values >= threshold - ROUNDING)
    order = kept[np.argsort(-values[kept], kind='stable')]
    return Pairs(pairs.first[order], pairs.second[order], values[order])


def _correlations(pixels: NDArray, first: NDArray, second: NDArray) -> NDArray:
    """Correlations [P] of pairs of rows of pixels [n, F]. Those of blank images are 1 if they are equal, or else 0."""
    means = pixels.mean(axis=1, keepdims=True)
    remainders = pixels - means
    blank = np.abs(remainders).max(axis=1) <= ROUNDING * np.abs(means[:, 0])
    small = unit(np.where(blank[:, None], 0, remainders))
    equal = blank[first] & blank[second] & np.isclose(means[first, 0], means[second, 0], rtol=ROUNDING, atol=0)
    return np.where(equal, np.float32(1), (small[first] * small[second]).sum(axis=1))


def reduced(images: NDArray) -> NDArray:
    """Pixels float32 [n, F] of images [n, H, W, C], reduced to `REDUCED` a side."""
    from PIL import Image

    def reduce(image: NDArray) -> NDArray:
        picture = Image.fromarray(np.ascontiguousarray(image)).resize((REDUCED, REDUCED), Image.Resampling.BOX)
        return np.asarray(picture, np.float32).reshape(-1)

    if is_photographic(images.dtype.name, images.shape[3]):
        small = [reduce(image) for image in np.broadcast_to(images, (*images.shape[:3], 3))]
    else:
        planes = np.moveaxis(images.astype(np.float32), 3, 1)
        small = [np.concatenate([reduce(plane) for plane in image]) for image in planes]
    return np.stack(small)
