"""Damages every file of the checkpoints of a real run in every way, and restores them in this process."""

import random
import shutil
from pathlib import Path
from typing import Any

import jax
from etils import epath

from dualcl_jax.method.state import TrainState, create_train_state
from dualcl_jax.system.config import from_json
from dualcl_jax.system.devices import device_mesh
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.checkpoint import Checkpoints
from dualcl_jax.workdir.checksum import state_sha256
from tests.faults.injected import DAMAGES, damage
from tests.support import quick_config
from tests.support.methods import image_method
from tests.support.runs import Trainer, checkpoints, contents

FIELDS = ('train.steps=30', 'checkpoint.every_steps=10', 'checkpoint.keep=2')
STEPS = [20, 30]


class Saved:
    """A run with checkpoints at `STEPS`, and the hashes of their states."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        assert quick_config.MODELS['smooth'] is quick_config.Smooth
        self.folder = folder / 'saved'
        trainer.run(self.folder, *FIELDS)
        assert checkpoints(self.folder) == STEPS
        config = from_json((self.folder / 'config.json').read_text())
        method = image_method(config, total_steps=30, steps_per_epoch=8, num_devices=1)
        self.like = jax.eval_shape(lambda: create_train_state(method))
        self.hashes = {step: state_sha256(self.read(self.folder, step)) for step in STEPS}
        self.files = sorted(path for path in contents(self.of(self.folder, STEPS[-1])))

    @staticmethod
    def of(folder: Path, step: int) -> Path:
        return folder / 'checkpoints' / f'{step:08d}'

    def read(self, folder: Path, step: int) -> TrainState:
        with Checkpoints(epath.Path(folder / 'checkpoints'), read_only=True) as store:
            return store.restore(step, self.like, device_mesh())[0]

    def copy(self, to: Path) -> Path:
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder / 'checkpoints', to / 'checkpoints')
        return to

    def newest(self, folder: Path) -> tuple[int, dict[int, str]]:
        """The step from which a run would resume, after a check of its state, and the damaged checkpoints by step."""
        with Checkpoints(epath.Path(folder / 'checkpoints'), keep=2) as store:
            found = store.newest(self.like, device_mesh(), {})
        assert found is not None
        assert state_sha256(found.state) == self.hashes[found.step]
        return found.step, dict(found.damaged)


def damage_one(saved: Saved, scratch: Path, name: str, how: str, rng: random.Random) -> bool:
    """Damages a file of the newest checkpoint; returns whether it was skipped. Its state may still be intact."""
    folder = saved.copy(scratch / 'damaged')
    damage(saved.of(folder, STEPS[-1]) / name, how, rng)
    left = contents(saved.of(folder, STEPS[-1]))
    step, damaged = saved.newest(folder)
    if step == STEPS[-1]:
        assert not damaged
        return False
    assert damaged.keys() == {STEPS[-1]}
    assert damaged[STEPS[-1]]
    assert contents(folder / 'damaged' / f'{STEPS[-1]:08d}') == left  # moved aside, not deleted
    return True


def damage_all(saved: Saved, scratch: Path) -> str:
    """Damages all checkpoints, and returns the error message. Nothing may be deleted or moved."""
    folder = saved.copy(scratch / 'damaged')
    for step in STEPS:
        (saved.of(folder, step) / 'run' / 'metadata').write_text('{')
    before = contents(folder)
    try:
        saved.newest(folder)
    except UserError as error:
        assert contents(folder) == before
        return str(error)
    raise AssertionError('a damaged checkpoint was used')


def damaged_checkpoints(trainer: Trainer, scratch: Path, flips: int) -> dict[str, Any]:
    """Applies every damage to every file, with bits flipped in `flips` places of each."""
    saved, rng, skipped = Saved(trainer, scratch), random.Random(3), []
    for name in saved.files:
        for how in DAMAGES:
            for _ in range(flips if how == 'a bit flipped' else 1):
                skipped.append(damage_one(saved, scratch, name, how, rng))
    assert 'nothing was changed' in damage_all(saved, scratch)
    return {'tried': len(skipped) + 1, 'skipped': sum(skipped), 'intact': len(skipped) - sum(skipped)}
