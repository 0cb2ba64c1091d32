"""tests/support/quick_config.py with injected faults: a model with NaN for one-coloured images, a hang, a full disk.

DUALCL_HANG=PROCESS:STEP in the environment: that process stops reading data at that step and waits forever.
DUALCL_HANG_IN=start|restore|create: the data are never read, or the state is never restored or created.
DUALCL_HANG_STEP=STEP: that step of the devices waits forever, in every process.
DUALCL_UNREADABLE=PROCESS:STEP:NUMBER: that process cannot read the checkpoint of that step: an error of this number, or
damage if it is 0.
DUALCL_DRAW=SECONDS: drawing the pictures takes as long, and JAX waits for the other processes at the end for a moment.
DUALCL_FULL=NAME: of a file of that name only the first half is written before the disk is full.
"""

import errno
import os
import time
from functools import partial

import jax.numpy as jnp
from etils.epath import gpath
from ml_collections import ConfigDict

from dualcl_jax.data.source import ArraySource
from dualcl_jax.models.encoder import MODELS

MODELS['fragile'] = MODELS['tiny']  # the name must exist before anything reads the table; replaced below

from tests.support import quick_config  # noqa: E402


class Fragile(quick_config.Smooth):
    """Divides by the range of each image, which may be 0."""

    def __call__(self, images, *, train):  # type: ignore[no-untyped-def]
        most, least = (f(images, axis=(1, 2), keepdims=True) for f in (jnp.max, jnp.min))
        return super().__call__(images / (most - least), train=train)


MODELS['fragile'] = Fragile


def _hang(process: int, step: int) -> None:
    import jax

    read, calls = ArraySource.examples, 0

    def examples(self, indices):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 0 < len(indices) < len(self)
        if calls > step and jax.process_index() == process:
            time.sleep(1e6)
        return read(self, indices)

    ArraySource.examples = examples  # type: ignore[method-assign]


if 'DUALCL_HANG' in os.environ:
    _hang(*map(int, os.environ['DUALCL_HANG'].split(':')))


def _hang_in(phase: str) -> None:
    from dualcl_jax.training import plan, run
    from dualcl_jax.workdir.checkpoint import Checkpoints

    def hang(*arguments, **options):  # type: ignore[no-untyped-def]
        time.sleep(1e6)

    if phase == 'start':
        plan.load = hang
    elif phase == 'restore':
        Checkpoints.newest = hang  # type: ignore[method-assign]
    else:
        run._new_state = hang


if 'DUALCL_HANG_IN' in os.environ:
    _hang_in(os.environ['DUALCL_HANG_IN'])


def _hang_step(last: int) -> None:
    import jax

    from dualcl_jax.training import loop

    train_step = loop.train_step

    def hang(step):  # type: ignore[no-untyped-def]
        if step >= last:
            time.sleep(1e6)

    def hanging(method, state, batch):  # type: ignore[no-untyped-def]
        jax.debug.callback(hang, state.step)
        return train_step(method, state, batch)

    loop.train_step = hanging


if 'DUALCL_HANG_STEP' in os.environ:
    _hang_step(int(os.environ['DUALCL_HANG_STEP']))


def _unreadable(process: int, step: int, number: int) -> None:
    import jax
    import orbax.checkpoint as ocp

    read = ocp.StandardCheckpointHandler.restore

    def restore(self, directory, *arguments, **options):  # type: ignore[no-untyped-def]
        if jax.process_index() == process and directory.parent.name == f'{step:08d}':
            raise OSError(number, os.strerror(number)) if number else ValueError('DATA_LOSS: as it says')
        return read(self, directory, *arguments, **options)

    ocp.StandardCheckpointHandler.restore = restore  # type: ignore[method-assign]


if 'DUALCL_UNREADABLE' in os.environ:
    _unreadable(*map(int, os.environ['DUALCL_UNREADABLE'].split(':')))


def _draw(seconds: float) -> None:
    import jax

    from dualcl_jax.training import loop

    jax.distributed.initialize = partial(jax.distributed.initialize, shutdown_timeout_seconds=3)
    loop.draw_pictures = lambda subject, samples: time.sleep(seconds)


if 'DUALCL_DRAW' in os.environ:
    _draw(float(os.environ['DUALCL_DRAW']))


def _full(name: str) -> None:
    write = gpath.PosixGPath.write_bytes

    def write_bytes(self, data):  # type: ignore[no-untyped-def]
        if not self.name.startswith(name):
            return write(self, data)
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    gpath.PosixGPath.write_bytes = write_bytes  # type: ignore[method-assign]


if 'DUALCL_FULL' in os.environ:
    _full(os.environ['DUALCL_FULL'])


def get_config() -> ConfigDict:
    return quick_config.get_config()
