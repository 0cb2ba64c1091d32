"""Runs on pairs of sentences: resumed, on several devices and in several processes, from the command line."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import sentences, simcse
from configs.shared import text_recipes
from dualcl_jax import main
from dualcl_jax.method.validation import validate
from dualcl_jax.system.config import flatten, override, to_json
from dualcl_jax.training.ahead_of_time import compile_step
from dualcl_jax.training.loop import train
from dualcl_jax.training.plan import make_plan
from tests.support.runs import Trainer, checkpoints, column, died_after, records, summary
from tests.support.text_runs import CONFIG, FIELDS, write_pairs


def run(trainer: Trainer, folder: Path, layout: str) -> None:
    """Trains in a folder of this name: on that many devices, or in 2 processes with 2 devices each."""
    fields = (*FIELDS, f'data.path={folder / "pairs.tsv"}')
    if layout == '2x2':
        trainer.run_processes(folder / layout, *fields, processes=2, devices=2, config=CONFIG)
    else:
        trainer.run(folder / layout, *fields, devices=int(layout), config=CONFIG)


@pytest.fixture(scope='module')
def runs(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdirs of one run on 1 device and in 2 processes."""
    folder = tmp_path_factory.mktemp('text')
    write_pairs(folder / 'pairs.tsv')
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(run, trainer, folder), ['1', '2x2']))
    return folder


@pytest.mark.parametrize('layout', [pytest.param('4', marks=pytest.mark.slow), '2x2'])
def test_any_number_of_devices_has_the_same_losses(trainer: Trainer, runs: Path, layout: str) -> None:
    if not (runs / layout).exists():
        run(trainer, runs, layout)
    expected, losses = (column(runs / name, 'train/loss') for name in ('1', layout))
    assert len(expected) == 12
    assert expected[0] == 0  # no negatives yet
    assert (expected[1:] > 1).all()
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    tokenizers = [(runs / name / 'tokenizer.json').read_bytes() for name in ('1', layout)]
    assert tokenizers[0] == tokenizers[1]


def test_what_a_run_says_of_its_data(runs: Path) -> None:
    report = json.loads((runs / '1' / 'data_report.json').read_text())
    assert report['train']['kind'] == 'text'
    assert report['splits']['train'] == {'folder': 'pairs.tsv', 'images': 128, 'labelled': 0}
    tokens = report['tokens']
    assert tokens['tokenizer'] == 'trained on the corpus'
    assert tokens['length'] == 12
    assert 0 < tokens['cut'] < 1
    assert 0 < tokens['padding'] < 1
    assert summary(runs / '1')['config']['model']['vocabulary'] == 220


def test_a_run_resumes_to_the_same_state(trainer: Trainer, runs: Path, tmp_path: Path, monkeypatch) -> None:
    """It reads the tokenizer that the workdir keeps, and trains none."""
    assert checkpoints(runs / '1') == [6, 12]
    workdir, data = died_after(runs / '1', 6, tmp_path / 'run'), tmp_path / 'moved.tsv'
    shutil.copy(runs / 'pairs.tsv', data)
    kept = (workdir / 'tokenizer.json').read_bytes()
    found = trainer.run(workdir, *FIELDS, f'data.path={data}', config=CONFIG)
    assert f'{workdir / "tokenizer.json"}; 12 for each sentence' in ' '.join(found.out.split())
    ours, theirs = summary(workdir), summary(runs / '1')
    assert ours['resumed_from_step'] == 6
    assert ours['state_sha256'] == theirs['state_sha256']
    assert records(workdir) == records(runs / '1')
    assert (workdir / 'tokenizer.json').read_bytes() == kept


def test_other_sentences_are_refused(in_process, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / '1', tmp_path / 'run')
    other = write_pairs(tmp_path / 'other.tsv', seed=1)
    flags = [f'--config.{field}' for field in (*FIELDS, f'data.path={other}')]
    refused = in_process(main.main, f'--config={CONFIG}', f'--workdir={tmp_path / "run"}', '--dry_run', *flags)
    assert refused.status == 2
    assert refused.err.startswith(f'error: data.path={other}: not the ')


def test_a_stored_run_keeps_copies_apart(tmp_path: Path) -> None:
    """A run of a version that divided copies resumes with the same sentences; a new one holds them out together."""
    lines = write_pairs(tmp_path / 'once.tsv', count=64).read_text()
    config = sentences.get_config()
    override(config, [*FIELDS, 'data.validation_fraction=0.25', 'data.hold_out=stratified'])
    config.data.path = str(tmp_path / 'twice.tsv')
    (tmp_path / 'twice.tsv').write_text(lines + lines)
    before, after = (tmp_path / name for name in ('before', 'after'))
    before.mkdir()
    stored = make_plan(config, str(before), writes=False)
    (before / 'config.json').write_text(to_json(stored.config))
    (before / 'tokenizer.json').write_bytes(stored.splits.train.kept_files['tokenizer.json'])
    config.data.hold_out = 'auto'
    resumed, new = (make_plan(config, str(workdir), writes=False) for workdir in (before, after))
    assert resumed.config.data.hold_out == 'stratified'
    assert [part.fingerprint for part in resumed.splits] == [part.fingerprint for part in stored.splits]
    assert new.config.data.hold_out == 'grouped'
    kept, held_out = (set(part.display(np.arange(len(part)))) for part in new.splits)
    assert len(held_out) == 16
    assert not kept & held_out


@pytest.mark.parametrize('preset', [pytest.param('contriever', marks=pytest.mark.slow), 'esimcse'])
def test_one_column(tmp_path: Path, preset: str) -> None:
    config = sentences.get_config()
    override(config, FIELDS)
    override(config, [f'views.preset={preset}', 'data.columns=1', 'train.steps=3', 'optimizer.warmup_epochs=0.1'])
    config.data.path = str(write_pairs(tmp_path / 'pairs.tsv'))
    assert train(config, str(tmp_path / 'run'))
    assert np.isfinite(summary(tmp_path / 'run')['loss'])


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        (('views.preset=moco_v2',), 'config.views.preset=moco_v2: is not for text; choose one of'),
        (('views.preset=simcse',), 'config.views.preset=simcse: takes one column, and data.columns=0,1 names 2'),
        (('model.dim=8',), 'config.model.dim=8: without a projection it is the number of features; set it to 16'),
        (('views.hue=0.1',), 'config.views.hue: is not for text; leave it out'),
        (('text.tokenizer=nowhere',), 'text.tokenizer=nowhere: nowhere cannot be used (No such file'),
        (('data.columns=0,1,2',), 'data.columns=0,1,2: name one column, two for pairs'),
    ],
)
def test_mistakes(in_process, tmp_path: Path, fields: tuple[str, ...], said: str) -> None:
    data = write_pairs(tmp_path / 'pairs.tsv', count=32)
    flags = [f'--config.{field}' for field in (*FIELDS, f'data.path={data}', *fields)]
    refused = in_process(main.main, f'--config={CONFIG}', f'--workdir={tmp_path / "run"}', '--dry_run', *flags)
    assert refused.status == 2
    assert refused.err.startswith(f'error: {said}')


def test_a_step_on_pairs_is_compiled_without_data() -> None:
    """The vocabulary of a tokenizer that is still to be trained is taken to be the default."""
    config = sentences.get_config()
    override(config, FIELDS)
    config.data.path, config.model.vocabulary = '', 0
    report = compile_step(config, jax.devices()[:1])
    assert report['global_batch'] == 16
    assert report['bytes_by_part']['parameters'] == 2 * 4 * 16_384 * 16  # of both encoders


@pytest.mark.parametrize('recipe', text_recipes.NAMES)
def test_recipes(recipe: str) -> None:
    config = simcse.get_config(recipe)
    validate(config)
    fields = dict(flatten(config))
    family, name = ('dualcl', recipe.removeprefix('dualcl_')) if recipe.startswith('dualcl_') else ('', recipe)
    assert fields['views.preset'] == ('contriever' if name == 'crop' else name)
    assert fields['loss.symmetric'] == (family == 'dualcl')
    assert (fields['queue.size'], fields['ema.momentum']) == {
        'simcse': (0, 0.0),
        'esimcse': (160, 0.995),
        'mocose': (512, 0.75),
        'contriever': (131_072, 0.9995),
        'pair': (2048, 0.99),
        'crop': (2048, 0.99),
    }[name]
    heads = {'simcse': 'tanh', 'esimcse': 'tanh', 'mocose': 'linear'}
    assert fields['model.projection'] == heads.get(name, 'none')
    authors = {'ema.schedule': 'cosine', 'queue.init': 'noise', 'optimizer.weight_decay': 1e-6, 'model.head_width': 384}
    assert name != 'mocose' or fields | authors == fields  # xbdxwyh/mocose, mocose_demo.ipynb


def test_an_unknown_recipe() -> None:
    with pytest.raises(ValueError, match='choose one of simcse, esimcse, '):
        simcse.get_config('bert')
