"""Records that a sweep accepts, and those of other runs, which it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest

from dualcl_jax.system.config import load_config
from dualcl_jax.system.errors import UserError
from experiments.ablation import __main__ as ablation
from experiments.ablation.measures import MEASURES
from experiments.ablation.records import make_plan, path_of, read_all, read_plan, same_runs, store, write_plan
from experiments.ablation.sweep import Arm, Job, Sweep, configured, load_sweep, plan
from tests.support.runs import REPOSITORY

SMALL = ('model.width=16',)
SWEEP = Sweep(
    title='Two methods',
    config='configs/cifar10_moco.py',
    base=('train.batch_size=16',),
    arms=(Arm('moco'), Arm('both', ('loss.symmetric=True',))),
    baseline='moco',
    seeds=(0, 1),
    budget=1000,
)


def keep(folder: Path, sweep: Sweep, job: Job, **changes) -> Path:
    """Stores a record of a run, with the parts that are compared; returns its path."""
    values = {value.key: 0.5 for value in MEASURES[sweep.measure].values}
    config = json.loads(configured(sweep.config, job.fields).to_json())
    about = {'arm': job.arm, 'seed': job.seed, 'fields': job.stored_fields, 'steps': job.steps, 'passes': job.passes}
    rest = {'wall_time_s': 9.0, 'curve': [], 'state_sha256': 'abc', 'versions': {}, 'config': config}
    store(folder, job, about | values | rest | changes)
    return path_of(folder, job)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a sweep with all records."""
    for job in plan(SWEEP, SMALL):
        keep(tmp_path, SWEEP, job)
    write_plan(tmp_path, make_plan(SWEEP, 'two.py', SMALL))
    return tmp_path


def test_records_of_the_plan_are_read(folder: Path) -> None:
    stored = read_plan(folder)
    assert [(each['arm'], each['seed']) for each in read_all(folder, stored)] == [
        ('moco', 0),
        ('moco', 1),
        ('both', 0),
        ('both', 1),
    ]
    older = {name: value for name, value in stored.items() if name != 'overrides'}
    (folder / 'sweep.json').write_text(json.dumps(older))
    assert read_plan(folder) == stored


@pytest.mark.parametrize(
    ('budget', 'overrides', 'named'),
    [
        (2000, SMALL, 'train.steps=124, train.steps=62'),
        (1000, (*SMALL, 'loss.temperature=0.4'), 'loss.temperature=0.4'),
        (1000, (), 'model.width=16'),
    ],
)
def test_records_of_other_runs_are_not_drawn(folder: Path, budget: int, overrides: tuple[str, ...], named: str) -> None:
    other = dataclasses.replace(SWEEP, budget=budget, seeds=(2,))
    path = keep(folder, other, plan(other, overrides)[0])
    with pytest.raises(UserError) as error:
        read_all(folder, read_plan(folder))
    assert str(error.value).startswith(f'{path}: belongs to a run with different fields (')
    assert all(field in str(error.value) for field in named.split(', '))


@pytest.mark.parametrize('flag', ['--budget=2000', '--config.loss.temperature=0.4'])
@pytest.mark.parametrize('how', [[], ['--dry_run']])
def test_other_runs_do_not_replace_the_plan(in_process, tmp_path: Path, flag: str, how: list[str]) -> None:
    path = REPOSITORY / 'experiments' / 'sweeps' / 'share.py'
    sweep = load_sweep(str(path))
    kept = keep(tmp_path, sweep, plan(sweep, [])[0])
    write_plan(tmp_path, make_plan(sweep, 'share.py', []))
    before = (tmp_path / 'sweep.json').read_bytes()
    found = in_process(ablation.main, 'run', str(path), f'--output={tmp_path}', '--seeds=7', flag, *how)
    assert (found.status, found.err.startswith(f'error: {kept}: belongs to a run with different')) == (2, True)
    assert (tmp_path / 'sweep.json').read_bytes() == before
    assert not (tmp_path / 'runs').exists()


def test_the_plan_and_the_records_have_no_paths(tmp_path: Path) -> None:
    """Those of the sweep, of its arms or of flags. Records of older versions have them, and are read."""
    base, arm = ('init_from=/home/someone/run',), ('data.labels=/home/someone/labels.csv',)
    sweep = dataclasses.replace(SWEEP, base=base, arms=(Arm('moco'), Arm('other', arm)))
    jobs = plan(sweep, ['text.tokenizer=/home/someone/words'])
    config = json.loads(load_config(str(REPOSITORY / SWEEP.config)).to_json())
    config['train']['batch_size'] = 256
    for job in jobs:
        keep(tmp_path, sweep, job, config=config)
    write_plan(tmp_path, make_plan(sweep, 'two.py', ['text.tokenizer=/home/someone/words']))
    assert not [path for path in tmp_path.rglob('*.json') if 'someone' in path.read_text()]
    assert read_plan(tmp_path)['base'] == ['init_from=run']
    keep(tmp_path, sweep, jobs[0], config=config, fields=list(jobs[0].fields))
    assert len(read_all(tmp_path, read_plan(tmp_path))) == len(jobs)
    assert same_runs(jobs, tmp_path, sweep) == {}  # other encoders may have the name


def test_a_folder_of_another_config_is_refused(folder: Path) -> None:
    other = dataclasses.replace(SWEEP, config='configs/cifar10.py')
    with pytest.raises(UserError, match=r'holds a sweep of configs/cifar10_moco\.py, not configs/cifar10\.py; choose'):
        write_plan(folder, make_plan(other, 'two.py', SMALL))


def test_a_record_without_a_value_of_the_measure_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match='was not measured by knn and linear; use another --output'):
        read_all(folder, make_plan(dataclasses.replace(SWEEP, measure='probe'), 'two.py', SMALL))


def test_records_of_another_sweep_are_those_of_its_plan(folder: Path) -> None:
    new = dataclasses.replace(SWEEP, arms=(Arm('old'),), baseline='old')
    assert list(same_runs(plan(new, SMALL), folder, new)) == ['old-seed0', 'old-seed1']


def test_records_of_other_data_are_refused(folder: Path) -> None:
    """Of runs with equal fields of the data. Older records do not tell which data they are of."""
    jobs = plan(SWEEP, SMALL)
    kept = [keep(folder, SWEEP, job, data_fingerprint='one') for job in jobs[1:]]
    assert len(read_all(folder, read_plan(folder))) == len(jobs)
    keep(folder, SWEEP, jobs[1], data_fingerprint='two')
    with pytest.raises(UserError, match=r'trained on other data than .*; use another --output') as error:
        read_all(folder, read_plan(folder))
    assert any(str(error.value).startswith(f'{path}: ') for path in kept)


def test_arms_may_have_data_of_their_own(tmp_path: Path) -> None:
    sweep = dataclasses.replace(SWEEP, arms=(Arm('moco'), Arm('few', ('data.limit=100',))))
    for job in plan(sweep, []):
        keep(tmp_path, sweep, job, data_fingerprint=job.arm)
    assert len(read_all(tmp_path, make_plan(sweep, 'two.py', []))) == 4


NO_RECORDS = [
    ('{}', 'arm is missing or wrong'),
    ('[]', 'it must be a mapping'),
    ('null', 'it must be a mapping'),
    ('{"arm": "moco"}', 'seed is missing or wrong'),
    ('{"arm": 3', 'Expecting'),
]


@pytest.mark.parametrize(('text', 'why'), NO_RECORDS)
@pytest.mark.parametrize('command', ['draw', 'run'])
def test_json_that_is_no_record(in_process, tmp_path: Path, command: str, text: str, why: str) -> None:
    path = REPOSITORY / 'experiments' / 'sweeps' / 'share.py'
    sweep = load_sweep(str(path))
    kept = keep(tmp_path, sweep, plan(sweep, [])[0])
    write_plan(tmp_path, make_plan(sweep, str(path), []))
    kept.write_text(text)
    arguments = ['draw', str(tmp_path)] if command == 'draw' else ['run', str(path), f'--output={tmp_path}']
    found = in_process(ablation.main, *arguments)
    assert (found.status, found.err.startswith(f'error: {kept}: damaged ({why}')) == (2, True)
    assert len(found.err.splitlines()) == 1


@pytest.mark.parametrize(
    'changes',
    [
        {'fields': 'seed=0'},
        {'seed': '0'},
        {'config': {}},
        {'curve': [{'step': 1}]},
    ],
)
def test_records_with_wrong_parts(folder: Path, changes: dict) -> None:
    keep(folder, SWEEP, plan(SWEEP, SMALL)[0], **changes)
    with pytest.raises(UserError, match=rf'damaged \({next(iter(changes))}.* is missing or wrong\); restore it'):
        read_all(folder, read_plan(folder))


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('{}', 'name is missing or wrong'),
        ('{"name": "mine"}', 'command is missing or wrong'),
        ('[]', 'it must be a mapping'),
    ],
)
@pytest.mark.parametrize('command', ['draw', 'run'])
def test_json_that_is_no_plan(in_process, tmp_path: Path, command: str, text: str, why: str) -> None:
    (tmp_path / 'sweep.json').write_text(text)
    path = REPOSITORY / 'experiments' / 'sweeps' / 'share.py'
    arguments = ['draw', str(tmp_path)] if command == 'draw' else ['run', str(path), f'--output={tmp_path}']
    found = in_process(ablation.main, *arguments)
    said = f'error: {tmp_path / "sweep.json"}: damaged ({why}); restore it, or remove it to repeat the run\n'
    assert (found.status, found.err) == (2, said)


@pytest.mark.parametrize(
    ('name', 'value'),
    [('measure', 'map'), ('measure', []), ('baseline', 'none'), ('overrides', 3), ('arms', [{'name': 'moco'}])],
)
def test_plans_with_wrong_parts(folder: Path, name: str, value: object) -> None:
    path = folder / 'sweep.json'
    path.write_text(json.dumps(read_plan(folder) | {name: value}))
    with pytest.raises(UserError, match=rf'damaged \({name}.* is missing or wrong\)'):
        read_plan(folder)


@pytest.mark.parametrize(
    ('path', 'shown'),
    [
        ('experiments/sweeps/share.py', 'experiments/sweeps/share.py'),
        ('docs/../experiments/share.py', 'experiments/share.py'),
        (str(REPOSITORY / 'mine' / 'share.py'), 'mine/share.py'),
        ('/tmp/someone/share.py', 'share.py'),
        ('../share.py', 'share.py'),
    ],
)
def test_the_command_has_the_file_of_the_sweep(monkeypatch: pytest.MonkeyPatch, path: str, shown: str) -> None:
    monkeypatch.chdir(REPOSITORY)
    stored = make_plan(SWEEP, path, [])
    assert stored['name'] == 'share'
    assert stored['command'] == f'python -m experiments.ablation run {shown} --budget=1000 --seeds=0,1'
