"""The pictures of a finished run, made from its data, its encoder and its metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dualcl_jax.data.order import epoch_permutation
from dualcl_jax.parallel import to_host, whole
from dualcl_jax.report import figures
from dualcl_jax.report.content import Subject, describe
from dualcl_jax.report.page import write_page
from dualcl_jax.report.samples import Samples, take_samples
from dualcl_jax.report.sheet import first_views
from dualcl_jax.run import Run
from dualcl_jax.state import TrainState

SHEET_IMAGES = 10


def draw_pictures(run: Run, state: TrainState, records: Sequence[dict[str, Any]], versions: dict[str, str]) -> None:
    """Writes `figures/` and `report.html`. Every process must call it; the one that writes draws.

    Args:
      run: the finished run.
      state: its global state.
      records: of `metrics.jsonl`.
      versions: of what it ran on.
    """
    state = whole(state)
    samples = take_samples(run.embed, state.variables, run.splits, writes=run.writes)
    if samples is None:
        return
    draw_figures(run, samples, records)
    subject = Subject(
        folder=run.folder,
        config=run.config,
        method=run.method,
        splits=run.splits,
        total_steps=run.total_steps,
        steps_per_epoch=run.steps_per_epoch,
        state=to_host(state),
        records=records,
        versions=versions,
    )
    write_page([describe(subject, samples)], run.folder / 'report.html')


def draw_figures(run: Run, samples: Samples, records: Sequence[dict[str, Any]]) -> None:
    """Writes `figures/`: curves, view pairs, nearest neighbours of held-out images, a 2-D map of the embedding.

    Without a test split the training images stand in.
    """
    train, method, shown = run.splits.train, run.method, samples.source
    folder = run.folder / 'figures'
    folder.mkdir(exist_ok=True)

    figures.curves(list(records), folder / 'curves.png')

    chosen = epoch_permutation(run.config.seed, 0, len(train))[:SHEET_IMAGES]
    views = first_views(train, chosen, method.views, method.image_size, method.seed)
    figures.view_pairs(train.images(chosen), views, folder / 'views.png')

    labelled = train.class_names is not None
    queries = samples.shown[samples.queries]
    figures.neighbours(
        shown.images(queries),
        shown.labels[queries] if labelled else None,
        np.stack([train.images(row) for row in samples.found]),
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
