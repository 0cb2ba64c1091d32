"""Whole runs end in exactly the stored states.

A state depends on the processor and on the versions of JAX and NumPy; if these differ, the tests are skipped.
`python -m tests.training.test_golden` records the states of this machine.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import QUICK, REPOSITORY, Trainer, summary

GOLDEN = REPOSITORY / 'tests/data/golden/states.json'

RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    'quickstart': (
        'configs/quickstart.py',
        ('train.steps=40', 'monitor.every_epochs=0', 'log.pictures=False'),
    ),
    'dual_view': (QUICK, ('negatives.selector=top_k',)),
    'without_queue': (
        QUICK,
        (
            'queue.size=0',
            'views.preset=moco_v3',
            'model.projection=mlp2_bn',
            'model.predictor=mlp2',
            'model.head_width=32',
            'loss.two_tau=True',
            'negatives.selector=all',
            'negatives.mask_same_image=False',
            'ema.schedule=cosine',
            'optimizer.name=lars',
            'optimizer.warmup_epochs=1',
        ),
    ),
    'one_way': (
        QUICK,
        (
            'loss.symmetric=False',
            'loss.key_weight=0.5',
            'loss.key_term=queue',
            'loss.shuffle_keys=True',
            'loss.hardness=0.5',
            'model.norm=split:2',
            'negatives.selector=threshold',
            'negatives.schedule=linear',
            'queue.init=noise',
            'optimizer.schedule=step',
            'train.accumulate_steps=2',
        ),
    ),
}
"""The configuration file and the fields of each run, which has one CPU device."""
FAST = ('dual_view',)
"""The runs that are not marked as slow."""


@functools.cache
def machine() -> dict[str, str]:
    """Everything that the bits of a result depend on."""
    about = Path('/proc/cpuinfo')
    lines = about.read_text().splitlines() if about.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(':') for line in reversed(lines))}
    return {
        'processor': fields.get('model name', platform.machine()),
        'flags': hashlib.sha256(fields.get('flags', '').encode()).hexdigest()[:16],
        'cores': str(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()),
    } | {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'numpy')}


def state_of(trainer: Trainer, recipe: str, workdir: Path) -> str:
    """Trains a recipe of `RECIPES`, and returns the checksum of its last state."""
    config, fields = RECIPES[recipe]
    trainer.run(workdir, *fields, config=config)
    return summary(workdir)['state_sha256']


def stored() -> Mapping[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(
    'recipe', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_run_ends_in_the_stored_state(trainer, tmp_path, recipe):
    here, golden = machine(), stored()
    others = [
        f'{name} {here[name]}, stored {value}' for name, value in golden['machine'].items() if here[name] != value
    ]
    if others:
        pytest.skip(f'states were stored on another machine or by other versions: {"; ".join(others)}')
    assert state_of(trainer, recipe, tmp_path / recipe) == golden['states'][recipe]


def main() -> None:
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
        os.environ[name] = '1'  # as for the tests
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder))
        states = {recipe: state_of(trainer, recipe, Path(folder, recipe)) for recipe in RECIPES}
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_text(json.dumps({'machine': machine(), 'states': states}, indent=2) + '\n')
    print(GOLDEN.read_text())


if __name__ == '__main__':
    main()
