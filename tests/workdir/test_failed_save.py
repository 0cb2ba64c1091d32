"""The exit status of a save that fails in a run of several processes: 75 for a passing fault, 2 for a full disk."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from dualcl_jax.method.state import TrainState
from dualcl_jax.system.devices import device_mesh, replicate
from dualcl_jax.system.errors import ending
from dualcl_jax.workdir import checkpoint
from dualcl_jax.workdir.checkpoint import Checkpoints

WRITING = 'Error writing "a/0.0" in OCDBT database at local file "/nfs/run/checkpoints/00000020/state/": '


def state() -> TrainState:
    empty: dict = {}
    small = TrainState(jnp.int32(20), {'w': np.ones(3, np.float32)}, empty, empty, empty, empty, None)
    return replicate(small, device_mesh())


@pytest.mark.parametrize(
    ('problem', 'status'),
    [
        (ValueError('UNAVAILABLE: Error writing "gs://bucket/run/d/1": HTTP response code: 503'), 75),
        (ValueError('DEADLINE_EXCEEDED: CURL error[28] Timeout was reached'), 75),
        (ValueError(f"INTERNAL: {WRITING}Stale file handle [os_error_code='116']"), 75),
        (ValueError(f"INTERNAL: {WRITING}Input/output error [os_error_code='5']"), 75),
        (OSError(24, 'Too many open files'), 75),
        (ValueError(f"RESOURCE_EXHAUSTED: {WRITING}No space left on device [os_error_code='28']"), 2),
        (OSError(122, 'Disk quota exceeded'), 2),
        (ValueError(f"PERMISSION_DENIED: {WRITING}Permission denied [os_error_code='13']"), 2),
    ],
)
def test_what_failed_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, status: int) -> None:
    def refuse(folder: epath.Path) -> None:
        monkeypatch.setattr(jax, 'process_count', lambda: 2)  # not before: the small state is of one process
        raise problem

    small, store = state(), Checkpoints(epath.Path(tmp_path / 'checkpoints'))
    monkeypatch.setattr(checkpoint, 'check_writable', refuse)
    with pytest.raises(Exception, match='step 20 could not be saved') as raised:
        store.save(20, small, {}, None)
    found = ending(raised.value)
    assert found is not None
    assert found[0] == status
    assert ('when the folder can be written again' in found[1]) == (status == 75)
