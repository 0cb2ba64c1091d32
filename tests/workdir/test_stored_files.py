"""Files of an earlier version still open: a run of `tests/support/quick_config.py` with the model `tiny`, and exports.

`tests/data/golden/` holds them, with the features that the version which wrote them gave for eight images.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dualcl_jax import evaluate, load_encoder
from dualcl_jax.data.images.source import image_source
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.workdir.folder import read_summary
from dualcl_jax.workdir.metrics import read_records
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.runs import QUICK, REPOSITORY, TIMEOUT, Trainer, contents, write_npz

GOLDEN = REPOSITORY / 'tests/data/golden'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('stored')
    with tarfile.open(GOLDEN / 'run.tar.gz') as archive:
        archive.extractall(folder, filter='data')
    return folder / 'run'


@pytest.fixture(scope='module')
def stored() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / 'embeddings.npz') as arrays:
        return dict(arrays)


def test_a_stored_run_gives_the_features_it_gave(workdir, stored):
    run = open_saved_run(str(workdir))
    assert run.step == 20
    images = stored['images']
    source = image_source('stored', images, np.full(len(images), -1, np.int32), None, '')
    embed = Embedder(run.method, run.mesh)
    for name, variables in (('query', run.state.variables), ('momentum', run.state.momentum_variables)):
        features = embed(variables, source, np.arange(len(images)))
        np.testing.assert_allclose(features.backbone, stored[f'{name}_backbone'], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(features.projection, stored[f'{name}_projection'], rtol=1e-4, atol=1e-5)


def test_its_records_are_read(workdir):
    summary = read_summary(workdir)
    assert summary is not None
    assert summary['step'] == 20
    records = read_records(workdir / 'metrics.jsonl')
    assert [record['step'] for record in records if 'train/loss' in record] == list(range(1, 21))


@pytest.mark.parametrize('file', ['encoder.safetensors', 'encoder.stablehlo', 'momentum.safetensors'])
def test_a_stored_export_gives_the_features_it_gave(stored, file):
    encoder = load_encoder(str(GOLDEN / file))
    assert encoder.description.step == 20
    np.testing.assert_allclose(encoder(stored['images']), stored[file], rtol=1e-4, atol=1e-5)


def test_a_stored_run_is_evaluated_as_it_was(in_process, workdir, tmp_path):
    before = contents(workdir)
    data = write_npz(tmp_path / 'data.npz')
    flags = (f'--workdir={workdir}', '--protocols=knn', f'--config.data.path={data}', f'--output={tmp_path}')
    done = in_process(evaluate.main, *flags)
    assert done.status == 0, done
    found = {
        (record['layer'], record['k'], record['tau']): record['value']
        for record in json.loads((tmp_path / 'knn.json').read_text())['records']
    }
    expected = {
        (record['layer'], record['k'], record['tau']): record['value']
        for record in json.loads((workdir / 'evaluation/knn.json').read_text())['records']
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=2 / 64), key  # rounding may change a vote
    assert contents(workdir) == before


def test_a_stored_run_is_complete(trainer: Trainer, workdir):
    """The command that made the run finds it finished, and changes no stored file."""
    write_npz(workdir.parent / 'data.npz')  # the path in its config
    fields = ('model.name=tiny', 'negatives.selector=top_k', 'checkpoint.every_steps=10', 'checkpoint.keep=1')
    before = contents(workdir)
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'dualcl_jax.main', f'--config={REPOSITORY / QUICK}', '--workdir=run'),
            *(f'--config.{field}' for field in ('data.path=data.npz', *fields)),
        ],
        cwd=workdir.parent,
        env=trainer.environment() | {'PYTHONPATH': str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done
    assert 'done: 20 steps' in done.stdout
    after = contents(workdir)
    for name in ('summary.json', 'metrics.jsonl', 'evaluation/knn.json'):
        assert after[name] == before[name]
