"""The batches that a loader makes of a source."""

import numpy as np

from dualcl_jax.data import Batch, Loader, Source
from dualcl_jax.data.images.crops import CropRecipe

B, STEPS = 18, 5
RECIPE = CropRecipe(((0.2, 1.0), (0.1, 0.5)), ((0.75, 4 / 3), (0.5, 2.0)), 12)


def batches(source: Source, rows: np.ndarray | None = None, start: int = 0, workers: int = 0) -> list[Batch]:
    """The rows of the batches from step `start` on."""
    rows = np.arange(B) if rows is None else rows
    loader = Loader(
        source,
        rows=rows,
        seed=3,
        batch_size=B,
        start_step=start,
        stop_step=STEPS,
        place=lambda batch: batch,
        recipe=RECIPE,
        workers=workers,
    )
    with loader as made:
        return list(made)
