"""Processes that see different checkpoints, as on network file systems, wait for each other's view or give up."""

import itertools
import threading
from pathlib import Path

import jax
import pytest
from etils import epath
from jax._src import distributed

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
    names = [itertools.count(), itertools.count()]
    monkeypatch.setattr(checkpoint, 'exchange_name', lambda: f'{next(names[distributed.global_state.process_id])}')
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
