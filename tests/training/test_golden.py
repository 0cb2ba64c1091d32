"""Whole runs begin with the stored losses and end in exactly the stored states.

A state depends on the processor and on the versions of JAX and NumPy; if these differ, the tests of states are skipped.
The losses are compared on every machine, within `TOLERANCE`, and so are the running statistics of the run in `SHORT`.
`python -m tests.training.test_golden states` records the states of this machine, `... numbers` its numbers.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support.runs import QUICK, REPOSITORY, Trainer, column, summary

GOLDEN = REPOSITORY / 'tests/data/golden'

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
STEPS = 5
"""How many losses of each run are stored."""
SHORT: dict[str, tuple[str, tuple[str, ...]]] = {
    'seeded': (QUICK, ('seed=7', 'model.norm=split:2', f'train.steps={STEPS}')),
}
"""A run of so many steps, whose running statistics are stored, and no state."""
FAST = ('dual_view', 'seeded')
"""The runs that are not marked as slow."""
TOLERANCE = 1e-4
"""With SSE4.2 instead of AVX-512, and with optimized programs, losses and statistics changed by less than 3e-6."""
TOLERANCES = {'quickstart': 3e-3}
"""Those of a network with ReLU, whose losses changed by 7e-4 in these steps, and by 1.6e-3 later."""


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


def train(trainer: Trainer, recipe: str, folder: Path) -> Path:
    """Trains a recipe; returns its workdir."""
    config, fields = (RECIPES | SHORT)[recipe]
    trainer.run(folder / recipe, *fields, config=config)
    return folder / recipe


def state_of(workdir: Path) -> str:
    """The checksum of the last state."""
    return summary(workdir)['state_sha256']


def numbers_of(workdir: Path) -> dict[str, list[float]]:
    """The first losses of a run, and the running statistics if these are all of its steps."""
    found = {'losses': column(workdir, 'train/loss')[:STEPS]}
    if summary(workdir)['step'] == STEPS:
        state = ocp.StandardCheckpointer().restore(workdir / f'checkpoints/{STEPS:08d}/state')
        for encoder in ('batch_stats', 'momentum_batch_stats'):
            for path, leaf in jax.tree.leaves_with_path(state[encoder]):
                found[f'{encoder}/{jax.tree_util.keystr(path, simple=True, separator="/")}'] = np.asarray(leaf)
    return {name: [float(f'{value:.7g}') for value in values] for name, values in found.items()}


RECORDS: dict[str, tuple[Iterable[str], Callable[[Path], Any]]] = {
    'states': (RECIPES, state_of),
    'numbers': (RECIPES | SHORT, numbers_of),
}
"""The stored files: their runs, and what they hold of each."""


def stored(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f'{name}.json').read_text())


def recipes(name: str) -> list[Any]:
    """The runs of a stored file, as parameters of a test."""
    return [recipe if recipe in FAST else pytest.param(recipe, marks=pytest.mark.slow) for recipe in RECORDS[name][0]]


@pytest.fixture(scope='module')
def workdir(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The workdir of a recipe, trained when it is first needed."""
    folder = tmp_path_factory.mktemp('golden')
    return functools.cache(lambda recipe: train(trainer, recipe, folder))


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
@pytest.mark.parametrize('recipe', recipes('numbers'))
def test_a_run_begins_with_the_stored_losses(workdir, recipe):
    expected, found = stored('numbers')['numbers'][recipe], numbers_of(workdir(recipe))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        tolerance = TOLERANCES.get(recipe, TOLERANCE)
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('recipe', recipes('states'))
def test_a_run_ends_in_the_stored_state(workdir, recipe):
    here, golden = machine(), stored('states')
    others = [
        f'{name} {here[name]}, stored {value}' for name, value in golden['machine'].items() if here[name] != value
    ]
    if others:
        pytest.skip(f'states were stored on another machine or by other versions: {"; ".join(others)}')
    assert state_of(workdir(recipe)) == golden['states'][recipe]


def main(name: str) -> None:
    for variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
        os.environ[variable] = '1'  # as for the tests
    names, read = RECORDS[name]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder))
        found = {recipe: read(train(trainer, recipe, Path(folder))) for recipe in names}
    file = GOLDEN / f'{name}.json'
    file.write_text(json.dumps({'machine': machine(), name: found}, indent=2) + '\n')
    print(file.read_text())


if __name__ == '__main__':
    main(*sys.argv[1:])
