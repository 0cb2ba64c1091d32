"""Damaged checkpoints are skipped in favour of the newest intact one, or all are named and nothing is changed."""

import dataclasses
import errno
import random
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from dualcl_jax.system.devices import device_mesh
from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.workdir.checkpoint import Checkpoints
from tests.faults.damaged import STEPS, Saved, damage_all, damage_one
from tests.faults.injected import DAMAGES
from tests.support.runs import Trainer, contents


@pytest.fixture(scope='module')
def saved(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(trainer, tmp_path_factory.mktemp('damaged'))


@pytest.mark.parametrize('how', DAMAGES)
def test_a_damaged_file(saved: Saved, tmp_path: Path, how: str) -> None:
    """Damage to the arrays and to the record; damage to other files may be harmless (the long form tries all)."""
    passed = {name: damage_one(saved, tmp_path, name, how, random.Random(1)) for name in saved.files if '/d/' in name}
    assert any(passed.values())
    assert damage_one(saved, tmp_path, 'run/metadata', how, random.Random(1))


def test_bits_that_nothing_else_would_see(saved: Saved, tmp_path: Path) -> None:
    """Arrays are stored uncompressed: a flipped bit is a different weight, which only the checksums detect."""
    name = max(
        (name for name in saved.files if 'process_0/d/' in name),
        key=lambda name: (saved.of(saved.folder, STEPS[-1]) / name).stat().st_size,
    )
    rng, said = random.Random(0), []
    for _ in range(12):
        folder = saved.copy(tmp_path / 'run')
        file = saved.of(folder, STEPS[-1]) / name
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        said += saved.newest(folder)[1].values()
    assert any('differs from what was saved' in reason for reason in said)


def test_none_is_whole(saved: Saved, tmp_path: Path) -> None:
    first, second = damage_all(saved, tmp_path).splitlines()
    assert f'/checkpoints/{STEPS[-1]:08d}: cannot be read' in first
    assert f'neither can {STEPS[0]:08d}' in first
    assert second.startswith('nothing was changed; restore it, or move it away')


def test_another_run_with_the_same_shapes(saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path / 'run')
    with Checkpoints(epath.Path(folder) / 'checkpoints', keep=2) as store:
        newest = store.newest(saved.like, device_mesh(), {})
        other = newest.state.replace(step=newest.state.step + 10)
        store.save(40, other, {'config_sha256': 'of another'}, None)
        store.finish()
        mine = newest.record['config_sha256']
        found = store.newest(saved.like, device_mesh(), {'config_sha256': [mine], 'more': [1]})
    assert found is not None
    assert found.step == STEPS[-1]
    assert found.damaged == {40: 'it belongs to another run: its config_sha256 is of another'}
    assert (folder / 'damaged' / '00000040').is_dir()


def test_another_model(saved: Saved, tmp_path: Path) -> None:
    """Different shapes: no checkpoint fits, and nothing is changed."""
    folder = saved.copy(tmp_path / 'run')
    queue = saved.like.queue
    larger = type(queue.keys)((queue.keys.shape[0] * 2, queue.keys.shape[1]), np.float32)
    like = saved.like.replace(queue=dataclasses.replace(queue, keys=larger))
    before = contents(folder)
    with (
        Checkpoints(epath.Path(folder) / 'checkpoints', keep=2) as store,
        pytest.raises(UserError, match='cannot be read as a checkpoint of this config'),
    ):
        store.newest(like, device_mesh(), {})
    assert contents(folder) == before


TENSORSTORE = 'UNKNOWN: Error reading local file "d/4e1b": {} [os_error_code=\'{}\'] [tensorstore_spec=...]'
AWAY = {
    'Input/output error': OSError(errno.EIO, 'Input/output error'),
    'Stale file handle': ValueError(TENSORSTORE.format('Stale file handle', errno.ESTALE)),
    'Too many open files': ValueError(TENSORSTORE.format('Too many open files', errno.EMFILE)),
    'ValueError: UNAVAILABLE: try again': ValueError('UNAVAILABLE: try again'),
    'RuntimeError: RESOURCE_EXHAUSTED: Out of memory': RuntimeError('RESOURCE_EXHAUSTED: Out of memory'),
}
REFUSED = {
    'Permission denied': PermissionError(errno.EACCES, 'Permission denied'),
    'ValueError: PERMISSION_DENIED: log in': ValueError('PERMISSION_DENIED: log in'),
}


@pytest.mark.parametrize('said', [*AWAY, *REFUSED])
@pytest.mark.parametrize('damaged', [(), STEPS[-1:]], ids=['newest', 'only intact'])
def test_a_failed_read_is_no_damage(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, damaged: list[int]
) -> None:
    """The newest checkpoint, or the only intact one, is intact but cannot be read: nothing is moved or skipped."""
    folder, error = saved.copy(tmp_path / 'run'), (AWAY | REFUSED)[said]
    for step in damaged:
        (saved.of(folder, step) / 'run' / 'metadata').write_text('{')
    before, intact = contents(folder), STEPS[0] if damaged else STEPS[-1]
    read = ocp.StandardCheckpointHandler.restore

    def restore(self, directory, **options):
        if directory.parent.name == f'{intact:08d}':
            raise error
        return read(self, directory, **options)

    with monkeypatch.context() as patched:
        patched.setattr(ocp.StandardCheckpointHandler, 'restore', restore)
        with pytest.raises(UserError) as raised:
            saved.newest(folder)
    assert isinstance(raised.value, RestartError) == (said in AWAY)
    assert f'({said})\nnothing was changed; ' in str(raised.value)
    assert contents(folder) == before
    step, skipped = saved.newest(folder)
    assert (step, list(skipped)) == (intact, [*damaged])
