"""Draws the pictures of a finished run from its data, its encoder and its metrics."""

import numpy as np
from etils import epath

from dualcl_jax.data import Source
from dualcl_jax.data.describe import baseline_name
from dualcl_jax.data.order import epoch_permutation
from dualcl_jax.method.views.images import ImageViews
from dualcl_jax.reports import figures
from dualcl_jax.reports.content import describe
from dualcl_jax.reports.page import render
from dualcl_jax.reports.samples import Samples
from dualcl_jax.reports.subject import Subject
from dualcl_jax.reports.view_sheet import first_views
from dualcl_jax.reports.visible import visible
from dualcl_jax.system.files import write_text

SHEET_IMAGES = 10


def draw_pictures(run: Subject, samples: Samples) -> None:
    """Writes `figures/` and `report.html` of a finished run into its folder.

    The figures are curves and a map of the embedding; for images also view pairs and nearest neighbours. Without a test
    split they show training examples.
    """
    train, folder = run.splits.train, run.folder / 'figures'
    folder.mkdir(exist_ok=True)
    figures.curves(run.records, baseline_name(train.kind), folder / 'curves.png')
    if samples.points is not None:
        figures.embedding_map(
            samples.points,
            samples.labels if train.class_names is not None else None,
            train.class_names,
            folder / 'embedding.png',
            of=samples.of,
        )
    views = run.method.views
    if isinstance(views, ImageViews):
        chosen = epoch_permutation(run.config.seed, 0, len(train))[:SHEET_IMAGES]
        drawn = first_views(train, chosen, views, run.method.seed)
        stretch = bool(views.value_range)
        shown = visible(train.examples(chosen)), visible(drawn, stretch=stretch)
        figures.view_pairs(*shown, folder / 'views.png')
        _draw_neighbours(train, samples, folder / 'neighbours.png')
    write_text(run.folder / 'report.html', render([describe(run, samples)]))


def _draw_neighbours(train: Source, samples: Samples, path: epath.Path) -> None:
    """Draws the nearest training images of some of the shown images."""
    labelled, queries = train.class_names is not None, samples.shown[samples.queries]
    found, similarities = samples.nearest
    figures.neighbours(
        visible(samples.source.examples(queries)),
        samples.source.labels[queries] if labelled else None,
        visible(np.stack([train.examples(row) for row in found])),
        train.labels[found] if labelled else None,
        similarities,
        train.class_names,
        path,
    )
