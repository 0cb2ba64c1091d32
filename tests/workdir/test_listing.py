"""Processes agree on the checkpoints that all of them see and can read, wait for each other's view, or give up."""

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax._src import distributed

from dualcl_jax.method.state import TrainState
from dualcl_jax.system.devices import device_mesh, replicate
from dualcl_jax.workdir import checkpoint
from dualcl_jax.workdir.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def started() -> None:
    """JAX has started before the threads act as processes."""
    jax.devices()


@pytest.mark.parametrize('late', [True, False])
def test_a_checkpoint_that_another_process_does_not_see(
    two_processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    monkeypatch.setattr(checkpoint, 'LISTING_S', 20 if late else 0.2)
    for index, step in ((0, 10), (0, 20), (1, 10)):
        (tmp_path / f'{index}/{step:08d}').mkdir(parents=True)
    stores = [Checkpoints(epath.Path(tmp_path / str(index)), read_only=True) for index in range(2)]
    listed = {}

    def look(index: int) -> None:
        listed[index] = stores[index]._listed()

    if late:
        threading.Timer(0.3, (tmp_path / '1/00000020').mkdir).start()
    said = two_processes(look)
    if late:
        assert said == [None, None]
        assert listed == {0: [10, 20], 1: [10, 20]}
    else:
        assert not listed
        assert all('process 1 sees other checkpoints than process 0; run the same command again' in s for s in said)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[list[Path], TrainState]:
    """The checkpoints of steps 2 and 4 as each of two processes sees them, and the shapes of their states."""
    folders = [tmp_path / str(index) / 'checkpoints' for index in range(2)]
    weights = {'weight': np.arange(4, dtype=np.float32)}
    with Checkpoints(epath.Path(folders[0]), keep=2) as store:
        for step in (2, 4):
            state = TrainState(np.int32(step), weights, {}, weights, {}, optax.EmptyState(), None)
            store.save(step, replicate(state, device_mesh()), {}, None)
    shutil.copytree(folders[0], folders[1])
    return folders, jax.eval_shape(lambda: state)


@pytest.mark.parametrize('number', [errno.EIO, 0])
def test_a_checkpoint_that_another_process_cannot_read(
    folders: tuple[list[Path], TrainState], two_processes, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Both processes give up, and change nothing; or both skip it if one finds it damaged."""
    places, like = folders
    stores = [Checkpoints(epath.Path(place), keep=2) for place in places]
    read, resumed = ocp.StandardCheckpointHandler.restore, {}

    def restore(self: Any, directory: Any, *arguments: Any, **options: Any) -> Any:
        if distributed.global_state.process_id == 1 and directory.parent.name == '00000004':
            raise OSError(number, os.strerror(number)) if number else ValueError('DATA_LOSS: as it says')
        return read(self, directory, *arguments, **options)

    def resume(index: int) -> None:
        found = stores[index].newest(like, device_mesh(), {})
        assert found is not None
        resumed[index] = (found.step, int(found.state.step), list(found.damaged))

    monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', restore)
    said = two_processes(resume)
    for index, place in enumerate(places):
        if number:
            assert f'{place}/00000004: cannot be read now (process 1: Input/output error)' in said[index]
        else:
            assert resumed[index] == (2, 2, [4])
        assert (place / '00000004').exists() == bool(number)
        assert (place.parent / 'damaged/00000004').exists() == (not number)
