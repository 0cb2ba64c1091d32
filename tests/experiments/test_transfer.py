"""The transfer of a sweep's encoders, with evaluations that need no training."""

import json
import shutil

import pytest

from experiments.ablation import transfer
from tests.support.runs import REPOSITORY

STORED = REPOSITORY / 'experiments/results/ablations/longer'


@pytest.fixture
def sweep(tmp_path):
    """The folder of a finished sweep, without its runs."""
    return shutil.copytree(STORED, tmp_path / 'sweep')


@pytest.fixture
def program(monkeypatch, in_process):
    """Runs the program on invented accuracies; returns its exit status, output and errors, and the measured runs."""
    measured = []

    def probe(workdir, data, fields):
        arm, seed = workdir.name.split('-seed')
        measured.append((workdir.name, data, tuple(fields)))
        value = {'moco': 0.5, 'full': 0.52}.get(arm, 0.4) + int(seed) / 1000
        common = {'metric': 'top1', 'data_set': 'cifar10/3.0.2', 'data_fingerprint': 'f', 'examples': 10000}
        return [common | {'layer': layer, 'value': value, 'versions': {}} for layer in transfer.LAYERS]

    monkeypatch.setattr(transfer, 'probe', probe)

    def run(*arguments):
        measured.clear()
        return *in_process(transfer.main, *arguments), list(measured)

    return run


def test_a_table_of_differences_paired_by_seed(sweep, program):
    status, printed, _, measured = program(sweep, '--data=cifar10', '--config.data.data_dir=there')
    assert status == 0
    assert ('moco-seed10', 'cifar10', ('data.data_dir=there',)) in measured
    assert '| `full` | 5 | 53.20 ± 0.07 | +2.00 [+2.00, +2.00] | 53.20 ± 0.07 | +2.00 [+2.00, +2.00] |' in printed
    assert '| `moco` | 5 | 51.20 ± 0.07 |  | 51.20 ± 0.07 |  |' in printed
    assert (sweep / 'transfer_cifar10.md').read_text() == printed
    stored = json.loads((sweep / 'transfer_cifar10.json').read_text())
    assert [stored[0][key] for key in ('arm', 'seed', 'backbone', 'examples')] == ['moco', 10, 0.51, 10000]
    assert len(stored) == len(list((sweep / 'records').iterdir()))


def test_only_new_runs_are_measured(sweep, program):
    path = sweep / 'transfer_cifar10.json'
    program(sweep, '--data=cifar10')
    before = path.read_text()
    records = json.loads(before)
    path.write_text(json.dumps([records[0] | {'state_sha256': 'of another run'}, *records[2:]]))
    assert [name for name, *_ in program(sweep, '--data=cifar10')[3]] == [
        f'{record["arm"]}-seed{record["seed"]}' for record in records[:2]
    ]
    assert path.read_text() == before
    assert program(sweep, '--data=cifar10')[3] == []


def test_mistakes(sweep, tmp_path, program):
    assert program(tmp_path, '--data=cifar10')[2].startswith(f'error: {tmp_path}/sweep.json: no sweep here')
    assert '--data=a,b: give the name of one data set' in program(sweep, '--data=a,b')[2]
    shutil.rmtree(sweep / 'records')
    assert program(sweep, '--data=cifar10')[2] == f'error: {sweep}/records: no run is finished yet\n'


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(transfer.UserError, match=f'^{tmp_path}: .*no run'):
        transfer.probe(tmp_path, 'cifar10', ())
