"""The pictures of a finished run, made from its data, its encoder and its metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dualcl_jax.data.order import epoch_permutation
from dualcl_jax.evaluators.knn import nearest
from dualcl_jax.report import figures
from dualcl_jax.report.sheet import first_views
from dualcl_jax.run import Run

SHEET_IMAGES = 10
MAP_IMAGES = 1000
BANK_IMAGES = 20_000
QUERY_IMAGES = 6
NEIGHBOURS = 8


def draw_pictures(run: Run, variables: Any, records: Sequence[dict[str, Any]]) -> None:
    """Writes `figures/`: curves, view pairs, nearest neighbours of test images, a 2-D map of the embedding.

    Without a test split the training images stand in. Every process must call it; the one that writes draws.

    Args:
      run: the finished run.
      variables: its encoder's.
      records: of `metrics.jsonl`.
    """
    (train, test), method, embed = run.splits, run.method, run.embed
    test = test or train
    rng = np.random.default_rng(0)
    shown = rng.permutation(len(test))[:MAP_IMAGES]
    banked = np.sort(rng.permutation(len(train))[:BANK_IMAGES])
    features = embed(variables, test, shown).backbone
    bank = embed(variables, train, banked).backbone
    if not run.writes:
        return
    folder = run.folder / 'figures'
    folder.mkdir(exist_ok=True)

    figures.curves(list(records), folder / 'curves.png')

    chosen = epoch_permutation(run.config.seed, 0, len(train))[:SHEET_IMAGES]
    views = first_views(train, chosen, method.views, method.image_size, method.seed)
    figures.view_pairs(train.images(chosen), views, folder / 'views.png')

    same_image = test is train
    queries = _one_per_class(test.labels[shown])
    similarities, found = map(np.asarray, nearest(features[queries], bank, NEIGHBOURS + same_image))
    similarities, found = similarities[:, int(same_image) :], banked[found[:, int(same_image) :]]
    neighbours = np.stack([train.images(row) for row in found])
    labelled = train.class_names is not None
    figures.neighbours(
        test.images(shown[queries]),
        test.labels[shown[queries]] if labelled else None,
        neighbours,
        train.labels[found] if labelled else None,
        similarities,
        train.class_names,
        folder / 'neighbours.png',
    )
    figures.embedding_map(
        features,
        test.labels[shown] if labelled else None,
        train.class_names,
        folder / 'embedding.png',
        of='training images' if same_image else 'test images',
    )


def _one_per_class(labels: np.ndarray) -> np.ndarray:
    """Positions of up to `QUERY_IMAGES` examples, of as many classes as there are."""
    _, first = np.unique(labels, return_index=True)
    rest = np.setdiff1d(np.arange(len(labels)), first)
    return np.concatenate([first, rest])[:QUERY_IMAGES]
