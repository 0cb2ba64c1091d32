"""The images that a report shows, their features, and what is computed of these once for the figures and the page."""

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data import Source, Splits
from dualcl_jax.data.describe import units
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.measures.knn import nearest, without_query
from dualcl_jax.evaluators.measures.rows import unit

MAP_IMAGES = 1000
BANK_IMAGES = 20_000
QUERY_IMAGES = 6
NEIGHBOURS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Images of a run and their backbone features.

    Attributes:
      source: the source of the shown images: the test split, or the training split if there is none.
      of_training: whether `source` is the training split.
      shown: [n], the shown images' indices in `source`, in random order.
      features: [n, F], the features of the shown images.
      banked: [N], the bank's indices in the training split, in ascending order.
      bank: [N, F], the features of the bank.
    """

    source: Source
    of_training: bool
    shown: NDArray
    features: NDArray
    banked: NDArray
    bank: NDArray

    @property
    def of(self) -> str:
        """What the shown examples are, in words. Held-out examples are those for testing or for validation."""
        return f'{"training" if self.of_training else "held-out"} {units(self.source.kind)}'

    @property
    def labels(self) -> NDArray:
        """The labels [n] of the shown images, -1 if unknown."""
        return self.source.labels[self.shown]

    @functools.cached_property
    def points(self) -> NDArray | None:
        """The positions [n, 2] of the shown images in the plane; None if they have no map."""
        return in_plane(self.features) if len(self.features) > 2 and np.isfinite(self.features).all() else None

    @property
    def queries(self) -> NDArray:
        """Positions [m] in `shown`, of images of as many classes as possible."""
        return one_per_class(self.labels, QUERY_IMAGES)

    @functools.cached_property
    def nearest(self) -> tuple[NDArray, NDArray]:
        """The training images nearest to each query, the most similar first: indices and cosines, [m, k] each."""
        queries = self.queries
        values, places = map(np.asarray, nearest(self.features[queries], self.bank, NEIGHBOURS + self.of_training))
        found = self.banked[places]
        if self.of_training:  # the bank may contain the query itself
            kept = without_query(found, self.shown[queries])
            found, values = (array[kept].reshape(len(queries), -1) for array in (found, values))
        return found, values


def take_samples(embed: Embedder, variables: Any, splits: Splits) -> Samples:
    """Draws images, the same for one data set in every run, and encodes them. Every process must call it."""
    train, source = splits.train, splits.test or splits.train
    rng = np.random.default_rng(0)
    shown = rng.permutation(len(source))[:MAP_IMAGES]
    banked = np.sort(rng.permutation(len(train))[:BANK_IMAGES])
    features = embed(variables, source, shown).backbone
    bank = embed(variables, train, banked).backbone
    return Samples(source, source is train, shown, features, banked, bank)


def one_per_class(labels: NDArray, count: int) -> NDArray:
    """The positions of up to `count` examples of as many classes as possible."""
    _, first = np.unique(labels, return_index=True)
    rest = np.setdiff1d(np.arange(len(labels)), first)
    return np.concatenate([first, rest])[:count]


def in_plane(features: NDArray, seed: int = 0) -> NDArray[np.float32]:
    """Maps features into the plane by t-SNE (van der Maaten and Hinton 2008) of the normalised features.

    It starts from the first two principal components, so that large distances are meaningful too (Kobak and Berens
    2019).

    Args:
      features: [n, F], finite, with n at least 3.
      seed: the seed of t-SNE.

    Returns:
      [n, 2].

    Raises:
      ValueError: fewer than 3 examples, or features that are not finite.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    features = np.asarray(features, np.float32)
    if len(features) < 3 or not np.isfinite(features).all():
        raise ValueError(f'need finite features of at least 3 examples, got shape {features.shape}')
    directions = unit(features)
    left, scales, _ = np.linalg.svd(directions - directions.mean(axis=0), full_matrices=False)
    components = left[:, :50] * scales[:50]
    start = np.zeros((len(features), 2), np.float32)
    start[:, : components.shape[1]] = components[:, :2]
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    start += 1e-6 * np.random.default_rng(seed).normal(size=start.shape).astype(np.float32)  # separates equal features
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init=start, learning_rate='auto', random_state=seed)
    # A second thread gains little, and on a busy machine its spinning takes ten times as long.
    with threadpool_limits(1):
        return tsne.fit_transform(components)
