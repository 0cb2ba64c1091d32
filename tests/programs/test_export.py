"""The export command: a file that gives the run's features, and errors."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dualcl_jax import export, load_encoder
from dualcl_jax.data import load
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.system.processes import start
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.runs import REPOSITORY, Trainer, contents


@pytest.fixture(scope='module')
def workdir(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp('export') / 'run'
    trainer.run(workdir, 'model.name=tiny', 'train.steps=4')
    return workdir


def test_as_a_command(workdir, tmp_path):
    before, output = contents(workdir), tmp_path / 'new' / 'encoder.safetensors'
    command = [sys.executable, '-m', 'dualcl_jax.export', f'--workdir={workdir}', f'--output={output}']
    flags = ['--format=safetensors', '--encoder=momentum', '--projection']
    done = subprocess.run([*command, *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith(f'{output}: tiny of step 4, momentum encoder, projection [N, 16]')
    assert contents(workdir) == before
    assert [path.name for path in output.parent.iterdir()] == ['encoder.safetensors']
    run = open_saved_run(str(workdir))
    train = load(run.config.data).train
    want = Embedder(run.method, run.mesh)(run.state.momentum_variables, train, np.arange(4)).projection
    loaded = load_encoder(output)
    pixels = jax.image.resize(train.examples(np.arange(4)).astype(np.float32) / 255, (4, 8, 8, 3), 'linear')
    np.testing.assert_allclose(loaded(pixels), want, atol=1e-5)


MISTAKES = {
    '--format=pickle': 'invalid choice',
    '--encoder=teacher': 'invalid choice',
    '--no_such_flag=1': 'unrecognized arguments: --no_such_flag=1',
    '--step=9': '--step=9: ',
    '--workdir=/no/such/run': '--workdir=/no/such/run: no run with a checkpoint',
    '--format=torchvision': '--format=torchvision: torchvision has no tiny; use safetensors or stablehlo',
    '--format=huggingface': '--format=huggingface: transformers has no tiny; use safetensors or stablehlo',
    '--output=': '--output=: cannot be written',
    '--output=.': '--output=.: cannot be written',
    '--output=/dev/null/file': '--output=/dev/null/file: cannot be written (its folder is a file)',
}


@pytest.mark.parametrize('flag', MISTAKES)
def test_mistakes(workdir, tmp_path, monkeypatch, capsys, flag):
    given = ['--format=safetensors', f'--workdir={workdir}', f'--output={tmp_path / "file"}', flag]
    monkeypatch.setattr(sys, 'argv', ['export', *given])
    monkeypatch.setattr(start, 'start', lambda *_, **__: None)
    assert export.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert MISTAKES[flag] in printed.err.splitlines()[0]
    assert len(printed.err.splitlines()) <= 3
    assert contents(tmp_path) == {}


def test_a_full_disk_leaves_nothing_behind(workdir, tmp_path, monkeypatch, capsys):
    from dualcl_jax.system import files

    def full(self, content):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(type(files.epath.Path(tmp_path)), 'write_bytes', full)
    monkeypatch.setattr(
        sys, 'argv', ['export', '--format=safetensors', f'--workdir={workdir}', f'--output={tmp_path}/x']
    )
    monkeypatch.setattr(start, 'start', lambda *_, **__: None)
    assert export.main() == 2
    assert f'--output={tmp_path}/x: cannot be written (No space left on device)' in capsys.readouterr().err
    assert contents(tmp_path) == {}
