"""A dry run writes nothing and prints what a run would print; a new run can start from another run's encoder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import chex
import orbax.checkpoint as ocp
import pytest
from ml_collections import FrozenConfigDict

from dualcl_jax import main
from dualcl_jax.method.negatives.selectors import EXACT
from dualcl_jax.system.config import override, to_json
from dualcl_jax.system.errors import UserError
from dualcl_jax.training.plan import make_plan
from dualcl_jax.training.summary import header
from tests.support import quick_config
from tests.support.runs import QUICK, Finished, Trainer, contents, summary


@pytest.fixture(scope='module')
def first(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp('first') / 'run'
    trainer.run(workdir, 'train.steps=2', 'negatives.selector=auto')
    return workdir


@pytest.fixture
def here(in_process, trainer: Trainer) -> Callable[..., Finished]:
    """Runs the command in this process and asserts its exit status."""

    def run(workdir: Path, *flags: str, status: int = 0) -> Finished:
        given = [
            flag if flag.startswith('--') else f'--config.{flag}'
            for flag in (f'data.path={trainer.data}', 'negatives.selector=auto', *flags)
        ]
        done = in_process(main.main, f'--config={QUICK}', f'--workdir={workdir}', *given)
        assert done.status == status, done
        return done

    return run


def test_dry_run(here, first: Path, tmp_path: Path) -> None:
    done = here(tmp_path / 'run', '--dry_run')
    assert done.out.splitlines()[-1] == 'dry run: everything is valid; nothing was trained or written'
    assert 'learning rate' in done.out
    assert not (tmp_path / 'run').exists()
    before = contents(first)
    refused = here(first, '--dry_run', 'train.steps=2', 'seed=1', status=2)
    assert 'holds a run with a different seed' in refused.err
    assert contents(first) == before


def test_a_plan_does_not_change_the_config(trainer: Trainer, tmp_path: Path) -> None:
    config, before = quick_config.get_config(), quick_config.get_config()
    config.data.path = before.data.path = str(trainer.data)
    config.negatives.selector = before.negatives.selector = 'auto'
    plan = make_plan(config, str(tmp_path / 'run'), writes=False)
    assert config == before
    assert isinstance(plan.config, FrozenConfigDict)
    assert len(plan.config.data.mean) == 3
    assert plan.config.negatives.selector in EXACT
    assert make_plan(plan.config, str(tmp_path / 'run'), writes=False).config == plan.config


@pytest.mark.parametrize(
    ('fields', 'fact', 'said'),
    [
        (
            'negatives.selector=ring negatives.skip=30 queue.size=32',
            'negatives',
            'ring 2 after the 30 hardest of a queue',
        ),
        ('negatives.selector=ring negatives.skip=13 queue.size=0', 'negatives', 'ring 2 after the 13 hardest of the'),
        ('negatives.mask_same_image=True queue.size=0', 'negatives', 'no other key of the same image'),
        ('negatives.mask_same_image=True', 'negatives', 'no older key of the same image'),
        ('loss.key_weight=1', 'negatives', 'those of the key term alone'),
        ('loss.key_weight=0.5', 'loss', 'key term at 0.5 against all other queries of the batch'),
        ('model.projection=mlp2_bn model.norm=split:8', 'warning', 'split:8 leaves 2 images in a group'),
        ('negatives.selector=all', 'warning', 'negatives.k has no effect'),
        ('negatives.skip=3', 'warning', 'negatives.skip has no effect with negatives.selector=threshold'),
        ('checkpoint.keep_best=1 monitor.every_epochs=0', 'warning', 'checkpoint.keep_best has no effect'),
    ],
)
def test_the_header_says_what_the_run_uses(trainer: Trainer, tmp_path: Path, fields: str, fact: str, said: str) -> None:
    config = quick_config.get_config()
    config.data.path = str(trainer.data)
    size = 'train.batch_size=16 train.accumulate_steps=1 negatives.k=8 negatives.selector=threshold loss.key_term=batch'
    override(config, f'{size} {fields}'.split())
    plan = make_plan(config, str(tmp_path / 'run'), writes=False)
    assert said in header(plan, {})[fact]


def test_patches_that_overlap_are_not_held_out(tmp_path: Path) -> None:
    """A new run is refused; one of an earlier version can be resumed."""
    config = quick_config.get_config()
    config.data.name, config.data.validation_fraction, config.negatives.selector = 'photo_patches', 0.1, 'auto'
    with pytest.raises(UserError, match=r'^config.data.validation_fraction=0.1: .*; use 0, or other data$'):
        make_plan(config, str(tmp_path / 'new'), writes=False)
    (tmp_path / 'stored').mkdir()
    config.data.mean, config.data.std, config.negatives.selector = (0.5,), (0.25,), 'all'
    stored = config.copy_and_resolve_references()
    stored.data.hold_out, stored.data.rows, stored.parallel.mapper = 'stratified', 'unchecked', 'pmap'
    (tmp_path / 'stored' / 'config.json').write_text(to_json(stored))
    plan = make_plan(config, str(tmp_path / 'stored'), writes=False)
    assert (len(plan.splits.train), len(plan.splits.test)) == (5994, 666)


def test_a_selector_is_chosen_once(here, first: Path, tmp_path: Path) -> None:
    """A selector that was chosen for `auto` is kept when the run resumes with a version that would choose another."""
    stored = first / 'config.json'
    chosen = json.loads(stored.read_text())['negatives']['selector']
    assert chosen in ('top_k', 'threshold')
    copy = tmp_path / 'run'
    copy.mkdir()
    other = {'top_k': 'threshold', 'threshold': 'top_k'}[chosen]
    (copy / 'config.json').write_text(stored.read_text().replace(f'"{chosen}"', f'"{other}"'))
    assert f'{other} 16 of' in here(copy, '--dry_run', 'train.steps=2').out
    refused = here(copy, '--dry_run', 'train.steps=2', f'negatives.selector={chosen}', status=2)
    assert 'a different negatives.selector' in refused.err


def params(workdir: Path, step: int, part: str) -> dict:
    folder = workdir / 'checkpoints' / f'{step:08d}' / 'state'
    return ocp.StandardCheckpointer().restore(folder.resolve())[part]['backbone']


def test_init_from(here, trainer: Trainer, first: Path, tmp_path: Path) -> None:
    """With a learning rate of 0 the new run keeps its first encoder. It resumes without the other run."""
    source = tmp_path / 'source'
    shutil.copytree(first, source)
    fields = (f'--init_from={source}', 'train.steps=1', 'optimizer.learning_rate=0', 'seed=5')
    trainer.run(tmp_path / 'run', *fields, 'negatives.selector=auto')
    start = params(first, 2, 'params')
    for part in ('params', 'momentum_params'):
        found = params(tmp_path / 'run', 1, part)
        chex.assert_trees_all_close(found, start, rtol=1e-6)
    shutil.rmtree(source)  # a run that has saved a checkpoint no longer needs it
    trainer.run(tmp_path / 'run', *fields, 'negatives.selector=auto')
    done = summary(tmp_path / 'run')
    assert done['step'] == 1
    assert done['knn_top1_random_encoder'] is None
    refused = here(tmp_path / 'run', *fields[1:], status=2)
    assert 'a different init_from' in refused.err


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        (('model.width=8',), 'its backbone has different shapes'),
        (('model.name=resnet18',), 'not a resnet18; use the model.name of its run, '),
        ((), 'no such folder, and models are not downloaded; name a workdir'),
    ],
)
def test_init_from_an_unsuitable_run(here, first: Path, tmp_path: Path, fields: tuple, said: str) -> None:
    source = first if fields else tmp_path / 'nothing'
    refused = here(tmp_path / 'run', f'--init_from={source}', *fields, status=2)
    assert f'--init_from={source}: ' in refused.err
    assert said in refused.err
