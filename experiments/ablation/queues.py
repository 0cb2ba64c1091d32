"""Finished runs with a queue, for programs that analyse its keys."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data import Source, data_config, load
from dualcl_jax.method.negatives.queue import Queue
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.saved_run import SavedRun, open_saved_run

IMAGES = 1000


class RunWithQueue(NamedTuple):
    """A run, its queue, its training split, and at most `IMAGES` random images of the split (indices)."""

    run: SavedRun
    queue: Queue
    train: Source
    images: NDArray[np.int64]


def open_run(workdir: str) -> RunWithQueue:
    """Opens a run.

    Raises:
      UserError: there is no run, its queue is missing or empty, or its data have changed.
    """
    run = open_saved_run(workdir)
    queue = run.state.queue
    if queue is None or not int(queue.filled):
        raise UserError(f'--workdir={workdir}: the run has no queue of keys; choose one with queue.size above 0')
    train = load(data_config(run.config, run.folder), validate=False).train
    if train.fingerprint != run.data_fingerprint:
        raise UserError(f'--workdir={workdir}: the images differ from those of training; restore them')
    return RunWithQueue(run, queue, train, np.random.default_rng(0).permutation(len(train))[:IMAGES])
