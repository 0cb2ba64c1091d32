"""Valid and invalid sweeps, and the included sweeps."""

import dataclasses
from pathlib import Path

import pytest

from dualcl_jax import step as training_step
from dualcl_jax.system.config import PRIVATE, load_config, override, to_json
from dualcl_jax.system.errors import UserError
from experiments.ablation.__main__ import chosen, item, parse, time_left
from experiments.ablation.measures import MEASURES
from experiments.ablation.sweep import LOCATIONS, Arm, Job, Sweep, configured, load_sweep, plan, public_fields
from tests.support.runs import REPOSITORY

SHIPPED = sorted((REPOSITORY / 'experiments' / 'sweeps').glob('*.py'))
TUNING = 'learning_rate', 'small_batch', 'small_batch_key', 'cifar100_settings'
ONE_WAY, BOTH = Arm('one-way', ('loss.symmetric=False',)), Arm('both', ('loss.symmetric=True',))


def sweep(*arms: Arm, budget: int = 1000, seeds: tuple[int, ...] = (0, 1)) -> Sweep:
    return Sweep('', 'configs/default.py', ('train.batch_size=32',), arms, arms[0].name, seeds, budget)


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid configs, distinct arms, equally many passes in each; a different batch size may cost a step."""
    monkeypatch.setattr(training_step, 'enqueue', training_step.enqueue)  # restored afterwards: noisy_bank replaces it
    found = load_sweep(str(path))
    jobs = plan(found, [])
    assert len(jobs) == len(found.arms) * len(found.seeds)
    assert len(found.seeds) >= (1 if path.stem in TUNING else 3)  # one to choose, three to compare
    configs = set()
    for job in jobs:
        config = load_config(str(REPOSITORY / found.config))
        override(config, job.fields)
        assert config.data.validation_fraction > 0 or found.measure == 'sts'  # which has STS-B dev
        assert job.passes == config.train.steps * config.train.batch_size * (1 + config.loss.symmetric)
        assert found.budget * 0.995 < job.passes <= found.budget
        configs.add(to_json(config))
    assert len(configs) == len(jobs)


def test_the_sweep_of_sentences() -> None:
    """All arms take the same steps, passes and keys per step; the method and the demo differ in sizes and τ."""
    found = load_sweep(str(REPOSITORY / 'experiments' / 'sweeps' / 'sentences.py'))
    jobs = plan(found, ['sts.path=somewhere'])
    assert (found.measure, len(found.arms), len(jobs)) == ('sts', 8, 24)
    assert {(job.steps, job.passes, job.settings) for job in jobs} == {(1100, 563_200, ('sts.path=somewhere',))}
    pairs = {'one_way': 512, 'dual_view': 256}
    for job in jobs:
        views, selection, queue = job.arm.split('-')
        config = configured(found.config, job.fields)
        assert config.train.batch_size == pairs[views]
        assert config.optimizer.warmup_epochs / config.train.batch_size == 0.2 / 256  # equally many steps
        assert config.loss.symmetric == (views == 'dual_view')
        assert config.negatives.selector == {'all': 'all', 'hardest': 'auto'}[selection]
        assert config.negatives.fraction == 0.25
        assert config.queue.size == int(queue.removeprefix('queue_'))
    assert [arm.levels for arm in found.arms if arm.levels] == [
        ('one_way', 'all'),
        ('one_way', 'hardest'),
        ('dual_view', 'all'),
        ('dual_view', 'hardest'),
    ]
    sizes = ('model.width=512', 'model.dim=512', 'queue.size=1024', 'optimizer.learning_rate=0.005', 'train.steps=1500')
    sizes += ('loss.temperature=0.1',)
    demo, full = (configured(found.config, fields) for fields in ((), (*jobs[3].fields, *sizes)))
    for section in ('data', 'views', 'model', 'loss', 'negatives', 'queue', 'ema', 'optimizer', 'train'):
        assert demo[section].to_dict() == full[section].to_dict()


def test_one_way_takes_twice_the_steps() -> None:
    jobs = plan(sweep(ONE_WAY, BOTH), ['model.dim=8'])
    assert [(job.name, job.steps, job.passes) for job in jobs] == [
        ('one-way-seed0', 30, 960),
        ('both-seed0', 15, 960),
        ('one-way-seed1', 30, 960),
        ('both-seed1', 15, 960),
    ]
    assert jobs[1].fields == ('train.batch_size=32', 'loss.symmetric=True', 'model.dim=8', 'seed=0', 'train.steps=15')
    assert jobs[0].settings == ('knn.k=200', 'knn.temperature=0.1')


def test_items_are_all_runs_once() -> None:
    jobs = plan(sweep(ONE_WAY, BOTH, seeds=(0, 1, 2)), [])
    parts = [jobs[item(f'{number}/4')] for number in range(4)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in jobs)


def test_some_arms_alone() -> None:
    found = sweep(ONE_WAY, BOTH)
    jobs = plan(found, [])
    assert chosen(found, jobs, None) == jobs
    assert [job.name for job in chosen(found, jobs, 'both')] == ['both-seed0', 'both-seed1']
    assert chosen(found, jobs, 'both,one-way') == jobs
    with pytest.raises(UserError, match=r"--arms=both,two: 'two' is not one of the arms: one-way, both"):
        chosen(found, jobs, 'both,two')


@pytest.mark.parametrize('place', ['data.path=somewhere', 'data.data_dir=somewhere', 'sts.path=somewhere'])
def test_places_of_this_machine_are_not_stored(place: str) -> None:
    job = plan(sweep(BOTH), [place, 'model.dim=8'])[0]
    assert place in job.fields
    assert job.stored_fields == [field for field in job.fields if field != place]


@pytest.mark.parametrize('name', PRIVATE)
def test_paths_of_this_machine_are_not_stored(name: str) -> None:
    found = public_fields(['seed=1', f'{name}=/home/someone/secret/last'])
    assert found == (['seed=1'] if name in LOCATIONS else ['seed=1', f'{name}=last'])
    assert public_fields(['data.labels=none', 'init_from=']) == ['data.labels=none', 'init_from=']


def test_a_config_with_open_fields_needs_a_batch() -> None:
    found = dataclasses.replace(sweep(BOTH), config='configs/folder.py', base=())
    with pytest.raises(UserError, match=r'arm both: train\.batch_size: the sweep needs a value'):
        plan(found, [])
    assert [job.steps for job in plan(dataclasses.replace(found, base=('train.batch_size=32',)), [])] == [15, 15]


@pytest.mark.parametrize(
    ('arms', 'overrides', 'budget', 'said'),
    [
        ([BOTH], [], 63, '--budget=63: less than a step'),
        ([BOTH], [], -1, '--budget=-1: less than a step'),
        ([BOTH], ['monitor.every_epochs=0'], 999, 'arm both: monitor.every_epochs=0'),
        ([Arm('a', ('seed=3',))], [], 999, 'arm a: seed=3'),
        ([BOTH], ['train.steps=5'], 999, 'arm both: train.steps=5'),
        ([BOTH, Arm('a', ('loss.temperature=0',))], [], 999, 'arm a: config.loss.temperature=0.0'),
        ([BOTH], ['loss.symetric=True'], 999, '--config.loss.symetric: no such field; did you mean loss.symmetric'),
        ([BOTH, Arm('a', ('loss.symetric=True',))], [], 999, 'arm a: loss.symetric: no such field; did you mean'),
        ([BOTH, Arm('a', ('loss',))], [], 999, 'arm a: loss: needs a value, loss=VALUE'),
        ([BOTH, Arm('a', ('model.dim=x',))], [], 999, 'arm a: model.dim=x: must be an integer'),
    ],
)
def test_plans_that_cannot_be(arms: list[Arm], overrides: list[str], budget: int, said: str) -> None:
    with pytest.raises(UserError) as error:
        plan(sweep(*arms, budget=budget), overrides)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('def get_sweep(:', 'SyntaxError'),
        ('def get_sweep(): return 3', 'must return'),
        (
            'def get_sweep(): return SWEEP((Arm("a"),), "a", measure="map")',
            "measure 'map' is not one of: knn, probe, sts",
        ),
        ('def get_sweep(): return SWEEP((Arm("a b"),), "a b")', "arm 'a b'"),
        ('def get_sweep(): return SWEEP((Arm("a"), Arm("a")), "a")', 'names must be unique'),
        ('def get_sweep(): return SWEEP((Arm("a"),), "b")', "baseline 'b' is not one of the arms: a"),
        ('def get_sweep(): return SWEEP((Arm("a", levels=("x",)), Arm("b", levels=("x",))), "a")', 'levels: an arm'),
        (
            'def get_sweep(): return SWEEP((Arm("a", levels=("x",)), Arm("b", levels=("x", "y"))), "a")',
            'levels: an arm',
        ),
    ],
)
def test_files_that_are_no_sweep(tmp_path: Path, text: str, said: str) -> None:
    head = 'from experiments.ablation.sweep import *\n'
    head += 'def SWEEP(arms, baseline, **more): return Sweep("", "", (), arms, baseline, (0,), 1, **more)\n'
    (tmp_path / 'sweep.py').write_text(head + text)
    with pytest.raises(UserError, match=r'sweep\.py') as error:
        load_sweep(str(tmp_path / 'sweep.py'))
    assert said in str(error.value)
    with pytest.raises(UserError, match='no such sweep'):
        load_sweep(str(tmp_path / 'none.py'))


def test_wrong_fields_of_the_base() -> None:
    with pytest.raises(UserError, match=r'^base: loss\.symetric: no such field; did you mean'):
        plan(dataclasses.replace(sweep(BOTH), base=('loss.symetric=True',)), [])


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ('title=None', 'title=None: must be a string'),
        ('config=3', 'config=3: must be a string'),
        ('base="model.dim=8"', "base='model.dim=8': must be a tuple of 'field=value'"),
        ('arms=(Arm("a"), "b")', "arms: 'b' is not an arm; write it as Arm('a')"),
        ('arms=Arm("a")', 'must be a tuple of arms'),
        ('baseline=None', 'baseline=None: must be a string'),
        ('seeds=3', 'seeds=3: must be a tuple of whole numbers from 0, each once'),
        ('seeds=()', 'seeds=(): must be'),
        ('seeds=(0, 0)', 'seeds=(0, 0): must be'),
        ('seeds=("0",)', "seeds=('0',): must be"),
        ('seeds=(-1,)', 'seeds=(-1,): must be'),
        ('seeds=(True,)', 'seeds=(True,): must be'),
        ('budget=64.5', 'budget=64.5: must be a whole number'),
        ('x_label=3', 'x_label=3: must be a string'),
        ('measure=["knn"]', "measure=['knn']: must be a string"),
        ('arms=(Arm(3),)', 'arm 3: name=3: must be a string'),
        ('arms=(Arm("a", None),)', "arm 'a': fields=None: must be a tuple of 'field=value'"),
        ('arms=(Arm("a", ("k=1")),)', "arm 'a': fields='k=1': must be a tuple of 'field=value'"),
        ('arms=(Arm("a", (1,)),)', "arm 'a': fields=(1,): must be a tuple of 'field=value'"),
        ('arms=(Arm("a", x="0.5"),)', "arm 'a': x='0.5': must be a finite number or None"),
        ('arms=(Arm("a", x=float("nan")),)', "arm 'a': x=nan: must be"),
        ('arms=(Arm("a", series=None),)', "arm 'a': series=None: must be a string"),
        ('arms=(Arm("a", levels="xy"),)', "arm 'a': levels='xy': must be a tuple of strings"),
    ],
)
def test_attributes_of_a_wrong_type(tmp_path: Path, changes: str, said: str) -> None:
    path = tmp_path / 'mine.py'
    path.write_text(
        'import dataclasses\n'
        'from experiments.ablation.sweep import *\n'
        f'def get_sweep(): return dataclasses.replace(VALID, {changes})\n'
        'VALID = Sweep("", "configs/default.py", (), (Arm("a"),), "a", (0,), 1000)\n'
    )
    with pytest.raises(UserError) as error:
        load_sweep(str(path))
    assert str(error.value).startswith(f'{path}: ')
    assert said in str(error.value)
    assert '\n' not in str(error.value)


def test_lists_are_as_good_as_tuples(tmp_path: Path) -> None:
    path = tmp_path / 'mine.py'
    path.write_text(
        'from experiments.ablation.sweep import *\n'
        'def get_sweep(): return Sweep("", "configs/default.py", ["train.batch_size=32"], ARMS, "a", [0, 1], 1000)\n'
        'ARMS = [Arm("a", ["model.dim=8"], levels=["x"]), Arm("b", levels=["y"])]\n'
    )
    assert [job.name for job in plan(load_sweep(str(path)), [])] == ['a-seed0', 'b-seed0', 'a-seed1', 'b-seed1']


@pytest.mark.parametrize('text', ['4/4', '1', 'a/b', '-1/2', '0/0'])
def test_wrong_item(text: str) -> None:
    with pytest.raises(UserError, match='--item'):
        item(text)


@pytest.mark.parametrize('flag', ['--temperature=1', '--config.seed', '--out=x'])
def test_wrong_flag(flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        parse(['run', 'sweep.py', '--output=x', flag])


def test_time_left_is_that_of_finished_runs() -> None:
    jobs = [Job(arm, 0, (), 10, 100, MEASURES['knn'], ()) for arm in ('a', 'b')]
    records = [{'arm': arm, 'passes': 10, 'wall_time_s': seconds} for arm, seconds in (('a', 1), ('a', 3), ('c', 6))]
    assert time_left(jobs, [], 2) is None
    assert time_left(jobs, records, 2) == pytest.approx((20 + 30) / 2)  # b is none of them: the median of all
