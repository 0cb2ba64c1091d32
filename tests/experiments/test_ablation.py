"""A sweep as a command: stopped, killed, resumed, with an arm that fails; then redrawn."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from experiments.ablation import __main__ as ablation
from experiments.ablation.measures import MEASURES
from experiments.ablation.runs import Outcome, Running, grid
from experiments.ablation.sweep import Job
from tests.support.runs import (
    REPOSITORY,
    Finished,
    Trainer,
    checkpoints,
    contents,
    finish,
    kill,
    killed_at_last,
    wait_until,
)

ALIKE = ('plain', 'again')
SWEEP = """
from experiments.ablation.sweep import Arm, Sweep

def get_sweep():
    base = ('data.validation_fraction=0.25', 'model.name=tiny', 'monitor.every_epochs=4', 'checkpoint.every_steps=4')
    return Sweep(
        title='The same method twice',
        config='tests/support/quick_config.py',
        base=base,
        arms=(Arm('plain'), Arm('again'), Arm('broken', ('data.num_examples=7',))),
        baseline='plain',
        seeds=(0, 1),
        budget=2 * 32 * 60,
    )
"""
OTHER = SWEEP.replace("Arm('plain'), Arm('again')", "Arm('new', ('model.dim=8',)), Arm('old')").replace(
    "baseline='plain'", "baseline='new'"
)


@pytest.fixture(scope='module')
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('sweep') / 'twice.py'
    path.write_text(SWEEP)
    return path


@pytest.fixture
def start(trainer: Trainer, sweep: Path) -> Callable[..., subprocess.Popen]:
    """Starts the command as a process."""

    def command(output: Path, *flags: str) -> subprocess.Popen:
        data = f'--config.data.path={trainer.data}'
        return subprocess.Popen(
            [
                sys.executable,
                '-m',
                'experiments.ablation',
                'run',
                sweep,
                f'--output={output}',
                '--jobs=2',
                data,
                *flags,
            ],
            cwd=REPOSITORY,
            env=trainer.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return command


@pytest.fixture
def here(in_process: Callable[..., Finished]) -> Callable[..., Finished]:
    """Runs the command in this process."""
    return partial(in_process, ablation.main)


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed(start, here, sweep: Path, tmp_path: Path) -> None:
    """Equal arms end in the same bits, although one of them was interrupted."""
    workdirs = [tmp_path / 'runs' / f'{arm}-seed{seed}' for arm in ALIKE for seed in (0, 1)]
    records = tmp_path / 'records'
    with killed_at_last(start(tmp_path)) as process:
        wait_until(lambda: checkpoints(workdirs[0]), process)
        process.send_signal(signal.SIGTERM)
        stopped = finish(process, 75)
    assert 'run the same command to continue' in stopped.out
    with killed_at_last(start(tmp_path)) as process:
        wait_until(lambda: list(records.glob('*.json')), process)
        kill(process)
    first = contents(records)
    with killed_at_last(start(tmp_path)) as process:
        done = finish(process, 2)
    assert done.err.startswith('error: 2 of 6 runs failed, the first broken-seed0: data.num_examples=7')
    assert len(done.err.strip().splitlines()) <= 3
    assert 'broken-seed1 failed: error: data.num_examples=7' in done.out
    assert contents(records).items() >= first.items()

    found = {path.stem: json.loads(path.read_text()) for path in records.glob('*.json')}
    assert sorted(found) == sorted(workdir.name for workdir in workdirs)
    for seed in (0, 1):
        plain, again = (found[f'{arm}-seed{seed}'] for arm in ALIKE)
        assert plain['state_sha256'] == again['state_sha256']
        assert plain['test_knn_backbone'] == again['test_knn_backbone'] is not None
        assert [point['step'] for point in plain['curve']] == [0, 24, 48, 60]
        assert plain['config']['data']['path'] == ''
        assert plain['curve'][-1]['knn_backbone'] == plain['validation_knn_backbone']
    assert json.loads((workdirs[0] / 'summary.json').read_text())['resumed_from_step'] is not None
    reports = [json.loads((workdir / 'data_report.json').read_text()) for workdir in workdirs]
    assert {(report['train']['examples'], report['test']['name']) for report in reports} == {(192, 'npz (validation)')}
    assert json.loads((workdirs[0] / 'evaluation' / 'knn.json').read_text())['records'][0]['examples'] == 64

    drawn = {name: content for name, content in contents(tmp_path).items() if '/' not in name}
    assert {'table.md', 'table.tex', 'runs.csv', 'curves.csv', 'bars.png', 'curves.png'} < drawn.keys()
    assert '| `again` | 2 |' in drawn['table.md'].decode()
    assert '+0.00 [+0.00, +0.00]' in drawn['table.md'].decode()
    for name in drawn.keys() - {'sweep.json'}:
        (tmp_path / name).unlink()
    assert here('draw', tmp_path).status == 0
    assert {name: content for name, content in contents(tmp_path).items() if '/' not in name} == drawn

    planned = here('run', sweep, f'--output={tmp_path}', '--dry_run')
    assert (planned.status, '6 runs, 4 of them done; time left: about' in planned.out) == (0, True)
    other_sweep, other = tmp_path / 'other.py', tmp_path / 'other'
    other_sweep.write_text(OTHER)
    flags = other_sweep, f'--output={other}', f'--records={tmp_path}'
    planned = here('run', *flags, '--dry_run')
    assert (planned.status, '6 runs, 2 of them done' in planned.out, other.exists()) == (0, True, False)
    assert here('run', *flags, '--arms=old').status == 0
    for seed in (0, 1):
        old = json.loads((other / 'records' / f'old-seed{seed}.json').read_text())
        assert old.pop('taken_from') in [f'twice/{arm}-seed{seed}' for arm in ALIKE]
        assert old == found[f'plain-seed{seed}'] | {'arm': 'old', 'wall_time_s': old['wall_time_s']} | {
            name: old[name] for name in ('images_per_second', 'curve')
        }
    assert '| `old` | 2 |' in (other / 'table.md').read_text()
    changed = here('run', sweep, f'--output={tmp_path}', '--config.model.dim=8')
    assert (changed.status, 'belongs to a run with different fields (model.dim=8)' in changed.err) == (2, True)


def test_a_plan_alone(here, sweep: Path, tmp_path: Path) -> None:
    found = here('run', sweep, f'--output={tmp_path / "new"}', '--dry_run', '--item=1/2', '--seeds=5,6,7')
    assert found.status == 0
    assert '4 runs, 0 of them done; time left: unknown until a run is done' in found.out
    assert not (tmp_path / 'new').exists()


def test_the_live_table_shows_how_far_each_run_is(tmp_path: Path) -> None:
    measure = MEASURES['knn']
    jobs = [Job(arm, seed, (), 60, 100, measure, ()) for seed in (0, 1) for arm in ('a', 'b', 'c')][:-1]
    (tmp_path / 'runs' / 'c-seed0').mkdir(parents=True)
    (tmp_path / 'runs' / 'c-seed0' / 'metrics.jsonl').write_text('{"step": 8}\n{"step": 1')
    outcome = Outcome({'a-seed0': 0.456}, {'b-seed0': 'error'}, [])
    process = subprocess.Popen(['true'])
    process.wait()
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(grid(tmp_path, measure, jobs, outcome, [Running(jobs[2], process, evaluates=False)]))
    cells = [line.split('│')[1:4] for line in console.export_text().splitlines() if '│' in line]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ['a', '45.6 %', '·'],
        ['b', 'failed', '·'],
        ['c', 'step 8/60', ''],
    ]


def test_nothing_to_draw(here, tmp_path: Path) -> None:
    found = here('draw', tmp_path)
    assert (found.status, 'no sweep' in found.err, len(found.err.splitlines())) == (2, True, 1)
