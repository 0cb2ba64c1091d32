"""The report command on trained runs, and its errors."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dualcl_jax import report as report
from dualcl_jax.system.processes import start
from tests.support.runs import REPOSITORY, Trainer, contents


@pytest.fixture(scope='module')
def workdir(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp('reports') / 'a <b>&'
    trainer.run(workdir, 'model.name=tiny', 'train.steps=4')
    return workdir


def test_two_runs_as_a_command(workdir, tmp_path):
    other = Path(shutil.copytree(workdir, tmp_path / 'other'))
    (other / 'summary.json').unlink()  # as in a run that was stopped
    before, output = contents(workdir), tmp_path / 'new' / 'both.html'
    flags = [f'--workdir={workdir}', f'--workdir={other}', f'--output={output}']
    command = [sys.executable, '-m', 'dualcl_jax.report', *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith(f'{output}: report of {workdir}, {other}')
    page = output.read_text()
    assert '<h1>a &lt;b&gt;&amp;, other</h1>' in page
    assert 'Versions are not recorded before the end of a run.' in page
    assert contents(workdir) == before


def refused(monkeypatch, capsys, *flags: str) -> str:
    monkeypatch.setattr(sys, 'argv', ['report', *flags])
    monkeypatch.setattr(start, 'start', lambda *_, **__: None)
    assert report.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert len(printed.err.splitlines()) <= 3
    return printed.err.splitlines()[0]


def test_mistakes(workdir, tmp_path, monkeypatch, capsys):
    run = f'--workdir={workdir}'
    for flags, said in {
        (): 'the following arguments are required: --workdir',
        (run, run): '--output: required for several runs',
        (run, '--theme=dark'): '--theme=dark: no such flag',
        (run, f'--workdir={tmp_path}', '--output=x.html'): f'--workdir={tmp_path}: no run with a checkpoint',
        (run, '--output=/dev/null/x.html'): '--output=/dev/null/x.html: cannot be written (its folder is a file)',
        (*[run] * 7, '--output=x.html'): '--workdir: at most 6 runs fit in a report',
    }.items():
        assert said in refused(monkeypatch, capsys, *flags)
    assert contents(tmp_path) == {}


def test_other_data_are_refused(workdir, tmp_path, monkeypatch, capsys):
    run = Path(shutil.copytree(workdir, tmp_path / 'run'))
    data = tmp_path / 'data.npz'
    np.savez(data, train_images=np.zeros((40, 16, 16, 3), np.uint8))
    config = (run / 'config.json').read_text()
    stored = next(line for line in config.splitlines() if '"path"' in line)
    (run / 'config.json').write_text(config.replace(stored, f'    "path": "{data}",'))
    assert 'not the data that' in refused(monkeypatch, capsys, f'--workdir={run}')
    data.unlink()
    assert f'data.path={data}' in refused(monkeypatch, capsys, f'--workdir={run}')
    assert not (run / 'report.html').exists()
