"""The images that a report shows, and their features, computed once for the figures and the page."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data import Source, Splits
from dualcl_jax.data.describe import units
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.measures.knn import nearest, without_query
from dualcl_jax.evaluators.measures.unit import unit

MAP_IMAGES = 1000
BANK_IMAGES = 20_000
QUERY_IMAGES = 6
NEIGHBOURS = 8


class Samples(NamedTuple):
    """Images of a run and their backbone features.

    Attributes:
      source: the source of the shown images: the test split, or the training split if there is none.
      of_training: whether `source` is the training split.
      shown: [n], the shown images' indices in `source`, in random order.
      features: [n, F], the features of the shown images.
      points: [n, 2], their positions in the plane; None if they have no map.
      banked: [N], the bank's indices in the training split, in ascending order.
      bank: [N, F], the features of the bank.
      queries: [m], positions in `shown`, of as many classes as possible.
      found: [m, k], indices in the training split: the nearest images of each query, the most similar first.
      similarities: [m, k], the cosines of queries and nearest images.
    """

    source: Source
    of_training: bool
    shown: NDArray
    features: NDArray
    points: NDArray | None
    banked: NDArray
    bank: NDArray
    queries: NDArray
    found: NDArray
    similarities: NDArray

    @property
    def of(self) -> str:
        """What the shown examples are, in words. Held-out examples are those for testing or for validation."""
        return f'{"training" if self.of_training else "held-out"} {units(self.source.kind)}'

    @property
    def labels(self) -> NDArray:
        """The labels [n] of the shown images, -1 if unknown."""
        return self.source.labels[self.shown]


class Encoded(NamedTuple):
    """Images of a run and their backbone features; see `Samples` for the fields."""

    source: Source
    of_training: bool
    shown: NDArray
    features: NDArray
    banked: NDArray
    bank: NDArray


def take_samples(embed: Embedder, variables: Any, splits: Splits) -> Samples:
    """Draws images, the same for one data set in every run, encodes them and arranges them in the plane."""
    return arrange(encode(embed, variables, splits))


def encode(embed: Embedder, variables: Any, splits: Splits) -> Encoded:
    """Draws images, the same for one data set in every run, and encodes them. Every process must call it."""
    train, source = splits.train, splits.test or splits.train
    rng = np.random.default_rng(0)
    shown = rng.permutation(len(source))[:MAP_IMAGES]
    banked = np.sort(rng.permutation(len(train))[:BANK_IMAGES])
    features = embed(variables, source, shown).backbone
    bank = embed(variables, train, banked).backbone
    return Encoded(source, source is train, shown, features, banked, bank)


def arrange(encoded: Encoded) -> Samples:
    """Finds the nearest neighbours of some images, and arranges all in the plane. One process is enough."""
    source, of_training, shown, features, banked, bank = encoded
    queries = one_per_class(source.labels[shown], QUERY_IMAGES)
    similarities, places = map(np.asarray, nearest(features[queries], bank, NEIGHBOURS + of_training))
    found = banked[places]
    if of_training:  # the bank may contain the query itself
        kept = without_query(found, shown[queries])
        similarities, found = (values[kept].reshape(len(queries), -1) for values in (similarities, found))
    return Samples(
        source=source,
        of_training=of_training,
        shown=shown,
        features=features,
        points=in_plane(features) if len(features) > 2 and np.isfinite(features).all() else None,
        banked=banked,
        bank=bank,
        queries=queries,
        found=found,
        similarities=similarities,
    )


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
