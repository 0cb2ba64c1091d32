"""The report command on trained runs, and its errors."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dualcl_jax import report
from tests.support.runs import contents


@pytest.fixture(scope='module')
def workdir(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp('reports') / 'a <b>&'))


def test_two_runs(in_process, workdir, tmp_path):
    other = Path(shutil.copytree(workdir, tmp_path / 'other'))
    (other / 'summary.json').unlink()  # as in a run that was stopped
    before, output = contents(workdir), tmp_path / 'new' / 'both.html'
    done = in_process(report.main, f'--workdir={workdir}', f'--workdir={other}', f'--output={output}')
    assert (done.status, done.err) == (0, '')
    assert done.out.startswith(f'{output}: report of {workdir}, {other}')
    page = output.read_text()
    assert '<h1>a &lt;b&gt;&amp;, other</h1>' in page
    assert 'Versions are not recorded before the end of a run.' in page
    assert contents(workdir) == before


def refused(in_process, *flags: str) -> str:
    printed = in_process(report.main, *flags)
    assert (printed.status, printed.out) == (2, '')
    assert len(printed.err.splitlines()) <= 3
    return printed.err.splitlines()[0]


def test_mistakes(in_process, workdir, tmp_path):
    run = f'--workdir={workdir}'
    for flags, said in {
        (): 'the following arguments are required: --workdir',
        (run, run): '--output: required for several runs',
        (run, '--theme=dark'): '--theme=dark: no such flag',
        (run, f'--workdir={tmp_path}', '--output=x.html'): f'--workdir={tmp_path}: no run with a checkpoint',
        (run, '--output=/dev/null/x.html'): '--output=/dev/null/x.html: cannot be written (its folder is a file)',
        (*[run] * 7, '--output=x.html'): '--workdir: at most 6 runs fit in a report',
    }.items():
        assert said in refused(in_process, *flags)
    assert contents(tmp_path) == {}


def test_other_data_are_refused(in_process, workdir, tmp_path):
    run = Path(shutil.copytree(workdir, tmp_path / 'run'))
    data = tmp_path / 'data.npz'
    np.savez(data, train_images=np.zeros((40, 16, 16, 3), np.uint8))
    config = (run / 'config.json').read_text()
    stored = next(line for line in config.splitlines() if '"path"' in line)
    (run / 'config.json').write_text(config.replace(stored, f'    "path": "{data}",'))
    assert 'not the data that' in refused(in_process, f'--workdir={run}')
    data.unlink()
    assert f'data.path={data}' in refused(in_process, f'--workdir={run}')
    assert not (run / 'report.html').exists()
