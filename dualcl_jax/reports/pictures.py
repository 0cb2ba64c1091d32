"""The pictures of a finished run, made from its data, its encoder and its metrics."""

import numpy as np

from dualcl_jax.data.order import epoch_permutation
from dualcl_jax.method.views.images import ImageViews
from dualcl_jax.reports import figures
from dualcl_jax.reports.content import describe
from dualcl_jax.reports.page import write_page
from dualcl_jax.reports.samples import Samples
from dualcl_jax.reports.subject import Subject
from dualcl_jax.reports.view_sheet import first_views

SHEET_IMAGES = 10


def draw_pictures(subject: Subject, samples: Samples) -> None:
    """Writes `figures/` and `report.html` of a finished run into its folder."""
    draw_figures(subject, samples)
    write_page([describe(subject, samples)], subject.folder / 'report.html')


def draw_figures(run: Subject, samples: Samples) -> None:
    """Writes `figures/`: curves, view pairs, nearest neighbours of held-out images, a 2-D map of the embedding.

    Without a test split the training images stand in.
    """
    train, method, shown = run.splits.train, run.method, samples.source
    folder = run.folder / 'figures'
    folder.mkdir(exist_ok=True)

    figures.curves([dict(record) for record in run.records], folder / 'curves.png')

    assert isinstance(method.views, ImageViews)
    chosen = epoch_permutation(run.config.seed, 0, len(train))[:SHEET_IMAGES]
    views = first_views(train, chosen, method.views, method.seed)
    figures.view_pairs(train.examples(chosen), views, folder / 'views.png')

    labelled = train.class_names is not None
    queries = samples.shown[samples.queries]
    figures.neighbours(
        shown.examples(queries),
        shown.labels[queries] if labelled else None,
        np.stack([train.examples(row) for row in samples.found]),
        train.labels[samples.found] if labelled else None,
        samples.similarities,
        train.class_names,
        folder / 'neighbours.png',
    )
    if samples.points is not None:
        figures.embedding_map(
            samples.points,
            samples.labels if labelled else None,
            train.class_names,
            folder / 'embedding.png',
            of=samples.of,
        )
