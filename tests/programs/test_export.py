"""The export command: a file that gives the run's features, and errors."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import dualcl_jax
from dualcl_jax import export, load_encoder
from dualcl_jax.data import load
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.runs import REPOSITORY, contents


def test_as_a_command(finished, tmp_path):
    before, output = contents(finished), tmp_path / 'new' / 'encoder.safetensors'
    command = [sys.executable, '-m', 'dualcl_jax.export', f'--workdir={finished}', f'--output={output}']
    flags = ['--format=safetensors', '--encoder=momentum', '--projection']
    done = subprocess.run([*command, *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith(f'{output}: tiny of step 4, momentum encoder, projection [N, 16]')
    assert contents(finished) == before
    assert [path.name for path in output.parent.iterdir()] == ['encoder.safetensors']
    run = open_saved_run(str(finished))
    train = load(run.config.data).train
    want = Embedder(run.method, run.mesh)(run.state.momentum_variables, train, np.arange(4)).projection
    loaded = load_encoder(output)
    pixels = jax.image.resize(train.examples(np.arange(4)).astype(np.float32) / 255, (4, 8, 8, 3), 'linear')
    np.testing.assert_allclose(loaded(pixels), want, atol=1e-5)


@pytest.mark.filterwarnings('ignore:Error writing persistent compilation cache entry')
def test_as_a_function(workdir, tmp_path, monkeypatch):
    """`load_encoder` takes the workdir, too, here of a run of which a later checkpoint was not finished."""
    monkeypatch.setattr('dualcl_jax.api.session.start', lambda *_, **__: None)
    dualcl_jax.export(workdir, tmp_path / 'encoder', step=4)
    (workdir / 'checkpoints' / '00000005.orbax-checkpoint-tmp').mkdir()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    of_file, of_run = load_encoder(tmp_path / 'encoder'), load_encoder(workdir)
    assert of_file.description.to_metadata() == of_run.description.to_metadata()
    np.testing.assert_array_equal(of_file(images), of_run(images))
    for path, message in ((tmp_path, 'path=.*: no run with a checkpoint'), (tmp_path / 'none', 'none: cannot be read')):
        with pytest.raises(UserError, match=message):
            load_encoder(path)
    for mistake, message in (
        ({'format': 'pickle'}, 'format=pickle: choose from safetensors, .*, huggingface'),
        ({'encoder': 'teacher'}, 'encoder=teacher: choose from query, momentum'),
        ({'step': 9}, '--step=9: '),
        ({'output': 3}, 'output: int; give a path'),
    ):
        with pytest.raises(UserError, match=message):
            dualcl_jax.export(**{'workdir': workdir, 'output': tmp_path / 'other'} | mistake)
    assert dualcl_jax.export is export  # one object, whatever was imported first


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
def test_mistakes(finished, tmp_path, in_process, flag):
    given = ['--format=safetensors', f'--workdir={finished}', f'--output={tmp_path / "file"}', flag]
    printed = in_process(export.main, *given)
    assert (printed.status, printed.out) == (2, '')
    assert MISTAKES[flag] in printed.err.splitlines()[0]
    assert len(printed.err.splitlines()) <= 3
    assert contents(tmp_path) == {}


def test_a_full_disk_leaves_nothing_behind(finished, tmp_path, monkeypatch, in_process):
    from dualcl_jax.system import files

    def full(self, content):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(type(files.epath.Path(tmp_path)), 'write_bytes', full)
    done = in_process(export.main, '--format=safetensors', f'--workdir={finished}', f'--output={tmp_path}/x')
    assert done.status == 2
    assert f'--output={tmp_path}/x: cannot be written (No space left on device)' in done.err
    assert contents(tmp_path) == {}
