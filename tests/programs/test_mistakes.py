"""User errors: exit status 2, at most three lines that name the field or path and the remedy, and no changed file."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dualcl_jax import main
from dualcl_jax.data.order import batch_indices
from tests.support.runs import QUICK, REPOSITORY, Trainer, contents, free_port, records, summary, write_npz

compilations: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compilations.append(event) if event.endswith('backend_compile_duration') else None
)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp('data') / 'data.npz')


@pytest.fixture
def refused(in_process, tmp_path: Path, data: Path):
    """Runs main with flags, or fields without --config, and returns its error; later flags override earlier ones.

    The workdir is tmp_path/run, the data set one of 256 images on four devices.
    """

    def run(*flags: str, status: int = 2) -> str:
        fields = ('data.name=npz', f'data.path={data}', 'train.batch_size=32', 'model.name=tiny', 'model.norm=sync')
        given = [flag if flag.startswith('-') else f'--config.{flag}' for flag in (*fields, *flags)]
        base = ['--config=configs/default.py', f'--workdir={tmp_path / "run"}']
        before = contents(tmp_path)
        compilations.clear()
        printed = in_process(main.main, *base, *given)
        assert printed.status == status, printed
        assert printed.out == ''
        assert printed.err.startswith('error: ')
        assert len(printed.err.splitlines()) <= 3
        assert 'Traceback' not in printed.err
        assert contents(tmp_path) == before
        assert not compilations
        return printed.err

    return run


FIELDS = {
    # flag: words that the error must contain
    'loss.temprature=0.2': ['loss.temprature', 'did you mean loss.temperature?'],
    'temperature=0.2': ['--config.temperature', 'did you mean loss.temperature?'],
    'zzzzzz=1': ['--config.zzzzzz', 'no such field'],
    'negatives.k=0.25': ['negatives.k=0.25', 'an integer'],
    'seed=-1': ['seed=-1', 'between 0 and'],
    'data.name=': ['data.name', 'npz', 'photo_patches'],
    'data.name=cifarten': ['data.name=cifarten'],
    'data.path=': ['data.path', 'set it to an .npz file'],
    'data.path=/no/such/file.npz': ['data.path=/no/such/file.npz', 'give the path of an .npz file'],
    'data.image_size=0': ['data.image_size=0', 'at least 4'],
    'data.limit=-5': ['data.limit=-5', 'at least 0'],
    'data.limit=20': ['train.batch_size=32', 'the 20 training examples', 'lower it'],
    'data.num_examples=50000': ['data.num_examples=50000', '256', 'set it to 0'],
    'data.mean=0.5': ['data.mean and config.data.std', 'both'],
    'views.preset=simclr': ['views.preset', 'moco_v1, moco_v2'],
    'views.crop_scale=0.5,0.2': ['views.crop_scale', '(0.5, 0.2)'],
    'views.crop_scale=0.5': ['views.crop_scale', '(low, high)'],
    'views.hue=0.9': ['views.hue', '0.9'],
    'views.flip=2': ['views.flip', '2'],
    'model.name=resnet19': ['model.name', 'resnet18, resnet34'],
    'model.name=no_such_module:Net': ["config.model.name='no_such_module:Net': ModuleNotFoundError"],
    'negatives.selector=no_such_module:pick': ["config.negatives.selector='no_such_module:pick': ModuleNotFoundError"],
    'model.stem=patch': ['model.stem', 'cifar, imagenet'],
    'model.width=0': ['model.width=0', 'at least 1'],
    'model.dim=1': ['model.dim=1', 'between 2 and'],
    'model.dtype=float16': ['model.dtype', 'float32, bfloat16'],
    'model.projection=deep': ['model.projection', 'linear, tanh, mlp'],
    'model.norm=batch': ['model.norm', "'local', 'sync' or 'split:n'"],
    'model.norm=split:': ['model.norm', "'split:n'"],
    'model.norm=split:0': ['model.norm', 'n at least 1'],
    'model.norm=split:6': ['model.norm', '6 groups do not fit 4 devices'],
    'model.norm=split:64': ['model.norm', '16 groups', '8 images'],
    'loss.temperature=0': ['loss.temperature=0.0', 'above 0'],
    'loss.temperature=nan': ['loss.temperature=nan', 'above 0'],
    'loss.key_weight=1.5': ['loss.key_weight=1.5', 'between 0 and 1'],
    'loss.hardness=-1': ['loss.hardness=-1.0', 'at least 0'],
    'data.validation_fraction=1': ['data.validation_fraction=1.0', 'below 1'],
    'loss.key_term=both': ['loss.key_term', 'batch, queue'],
    'negatives.selector=hardest': ['negatives.selector', 'all, top_k'],
    'negatives.k=5000': ['negatives.k=5000', 'at most config.queue.size=4096'],
    'negatives.fraction=0': ['negatives.fraction=0.0', 'above 0 and at most 1'],
    'negatives.fraction=1.5': ['negatives.fraction=1.5', 'above 0 and at most 1'],
    'queue.size=-1': ['queue.size=-1', 'between 0 and'],
    'negatives.start_fraction=0': ['negatives.start_fraction=0.0', 'above 0'],
    'negatives.schedule=step': ['negatives.schedule', 'constant, linear, cosine'],
    'model.predictor=deep': ['model.predictor', 'none, mlp2, mlp2_bn'],
    'optimizer.schedule=linear': ['optimizer.schedule', 'cosine, step'],
    'train.accumulate_steps=5': ['train.accumulate_steps=5', 'divide'],
    'queue.init=zeros': ['queue.init', 'empty, noise'],
    'ema.momentum=1.1': ['ema.momentum=1.1', 'between 0 and 1'],
    'ema.schedule=linear': ['ema.schedule', 'constant, cosine'],
    'optimizer.name=adam': ['optimizer.name', 'sgd, lars, adamw'],
    'optimizer.learning_rate=inf': ['optimizer.learning_rate=inf'],
    'optimizer.momentum=1': ['optimizer.momentum=1.0', 'below 1'],
    'optimizer.weight_decay=-1': ['optimizer.weight_decay=-1.0', 'at least 0'],
    'optimizer.warmup_epochs=200': ['optimizer.warmup_epochs=200', 'shorter than the run'],
    'train.batch_size=0': ['train.batch_size=0', 'at least 1'],
    'train.batch_size=30': ['train.batch_size=30', 'a multiple of the 4 devices', '28'],
    'train.batch_size=512': ['train.batch_size=512', '256 training examples', 'lower it'],
    'train.epochs=-1': ['train.epochs=-1', 'at least 0'],
    'train.epochs=0': ['train.epochs=0', 'train.steps'],
    'log.every_steps=0': ['log.every_steps=0', 'at least 1'],
    'checkpoint.keep=0': ['checkpoint.keep=0', 'at least 1'],
    'monitor.k=0': ['monitor.k=0', 'at least 1'],
    'monitor.temperature=0': ['monitor.temperature=0.0', 'above 0'],
    'parallel.mapper=pjit': ['parallel.mapper', 'pmap, shard_map'],
    '--profile=-1': ['--profile=-1', 'at least 0'],
    '--workdr=x': ['--workdr', 'no such flag', '--help'],
    '--workdir=': ['--workdir', 'name a folder'],
    '--workdir': ['--workdir', '--help'],
    '--config=no/such.py': ['--config=no/such.py', 'no such file'],
    '--config=configs': ['--config=configs', 'no such file'],
    '--config=README.md': ['--config=README.md', 'Python file'],
    '--num_processes=two': ['--num_processes', 'two'],
    '--num_processes=2': ['--coordinator_address, --num_processes and --process_id', 'all three'],
}


@pytest.mark.parametrize(('given', 'said'), FIELDS.items(), ids=FIELDS)
def test_wrong_flag(refused, given: str, said: list[str]) -> None:
    text = refused(given)
    for words in said:
        assert words in text


def test_other_channels(refused, tmp_path: Path) -> None:
    gray = write_npz(tmp_path / 'gray.npz', channels=1)
    text = refused(f'data.path={gray}', 'data.mean=0.5,0.5,0.5', 'data.std=0.2,0.2,0.2')
    assert 'config.data.mean=(0.5, 0.5, 0.5): 3 numbers' in text
    assert 'have 1 channels' in text


def test_process_flags_that_do_not_fit(refused) -> None:
    text = refused('--coordinator_address=127.0.0.1:1', '--num_processes=2', '--process_id=2')
    assert '--process_id=2' in text
    assert '--num_processes=2' in text


def test_address_that_is_none(refused) -> None:
    text = refused('--coordinator_address=127.0.0.1', '--num_processes=2', '--process_id=1')
    assert '--coordinator_address=127.0.0.1: must be HOST:PORT' in text


def test_nobody_at_the_address(refused) -> None:
    address = f'127.0.0.1:{free_port()}'
    flags = f'--coordinator_address={address}', '--num_processes=2', '--process_id=1', 'parallel.timeout_s=0.1'
    text = refused(*flags, status=75)  # process 0 may be late
    assert f'--coordinator_address={address}: no answer' in text
    assert 'start process 0 there' in text


def test_flag_and_value_apart(refused) -> None:
    assert '--config.seed=VALUE' in refused('--config.seed', '3')


def test_sharded_queue_that_does_not_fit(refused) -> None:
    text = refused('queue.sharded=True', 'queue.size=30')
    assert 'config.queue.size=30: a sharded queue must be a multiple of the 4 devices, such as 28' in text
    text = refused('queue.sharded=True', 'negatives.selector=random')
    assert "config.negatives.selector='random': cannot select from a sharded queue; choose one of all, top_k" in text
    assert 'config.queue.sharded=True: there is no queue' in refused('queue.sharded=True', 'queue.size=0')


DEFAULT = 'from configs import default\ndef get_config():\n  c = default.get_config()\n'
CONFIGS = {
    'raise RuntimeError("no luck")': ['RuntimeError', 'no luck'],
    'def get_config(:': ['SyntaxError', 'line 1'],
    'import sys; sys.exit(3)': ['SystemExit'],
    'x = 1': ['get_config'],
    'def get_config(): return {"seed": 0}': ['ConfigDict'],
    'def get_config(): raise KeyError("who")': ['KeyError', 'who'],
    'from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({"seed": 0})': ['no such field'],
    f'{DEFAULT}  c.loss.temprature = 0.2\n  return c': ['Did you mean "temperature" instead of "temprature"?'],
    f'{DEFAULT}  c.negatives.k = 0.25\n  return c': ["'k'", 'float', 'int'],
    f'{DEFAULT}  c.unlock()\n  del c.queue.size\n  return c': ['config.queue.size', 'missing', 'configs/default.py'],
}


@pytest.mark.parametrize(('code', 'said'), CONFIGS.items(), ids=[str(index) for index in range(len(CONFIGS))])
def test_wrong_config_file(refused, tmp_path: Path, code: str, said: list[str]) -> None:
    (tmp_path / 'mine.py').write_text(code)
    text = refused(f'--config={tmp_path / "mine.py"}')
    for words in said:
        assert words in text


def test_unusable_file_of_data(refused, tmp_path: Path, data: Path) -> None:
    path = tmp_path / 'mine.npz'
    np.savez(path, images=np.zeros((64, 8, 8, 2), np.uint8))
    assert f"data.path={path}: array 'images' is uint8 [64, 8, 8, 2]" in refused(f'data.path={path}')
    path.write_bytes(data.read_bytes()[:-100])
    assert 'cannot be read' in refused(f'data.path={path}')


def test_missing_data_dir(refused, tmp_path: Path) -> None:
    text = refused('data.name=cifar10', f'data.data_dir={tmp_path / "nowhere"}')
    assert 'data.data_dir' in text
    assert 'nowhere' in text


@pytest.mark.parametrize('below', ['', '/run'])
def test_file_in_the_way_of_the_workdir(refused, tmp_path: Path, below: str) -> None:
    (tmp_path / 'file').write_text('precious')
    text = refused(f'--workdir={tmp_path}/file{below}')
    assert f'--workdir={tmp_path}/file{below}: cannot be written' in text
    assert 'choose another folder' in text


FOUR_STEPS = ('model.name=tiny', 'train.steps=4')


@pytest.fixture
def workdir(finished: Path, tmp_path: Path) -> Path:
    """A copy of a run of four steps, with its last checkpoint alone."""
    run = Path(shutil.copytree(finished, tmp_path / 'run'))
    shutil.rmtree(run / 'checkpoints' / '00000002')
    return run


def same_run(trainer: Trainer) -> list[str]:
    return [f'--config={QUICK}', *FOUR_STEPS, f'data.path={trainer.data}']


def test_another_run_in_the_workdir(refused, trainer: Trainer, workdir: Path) -> None:
    text = refused(*same_run(trainer), 'loss.temperature=0.3', 'seed=1')
    assert text.splitlines()[0] == (
        f'error: --workdir={workdir}: holds a run with a different loss.temperature (0.1, now 0.3), seed (0, now 1)'
    )
    assert 'use a new --workdir' in text


def test_damaged_config_in_the_workdir(refused, trainer: Trainer, workdir: Path) -> None:
    (workdir / 'config.json').write_text('{"seed": 0')
    said = refused(*same_run(trainer))
    assert str(workdir / 'config.json') in said
    assert 'new --workdir' in said


@pytest.mark.parametrize('damage', ['truncated', 'missing'])
def test_damaged_record_of_a_checkpoint(refused, trainer: Trainer, workdir: Path, damage: str) -> None:
    file = workdir / 'checkpoints' / '00000004' / 'run' / 'metadata'
    if damage == 'truncated':
        file.write_text(file.read_text()[:10])
    else:
        file.unlink()
    said = refused(*same_run(trainer))
    assert f'{workdir}/checkpoints/00000004: cannot be read' in said
    assert 'move it away' in said


def test_damaged_arrays_of_a_checkpoint(trainer: Trainer, workdir: Path) -> None:
    """As a command: if one of many reads has failed, the others must add nothing to the message."""
    for file in (workdir / 'checkpoints' / '00000004' / 'state').glob('**/d/*'):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = contents(workdir)
    refused = trainer.run(workdir, *FOUR_STEPS, status=2)
    said, remedy = refused.err.splitlines()
    assert said.startswith(f'error: {workdir}/checkpoints/00000004: cannot be read')
    assert 'move it away' in remedy
    assert contents(workdir) == before


def test_diverging_loss(trainer: Trainer, tmp_path: Path) -> None:
    """The run stops at that step, and nothing of it is saved."""
    stopped = trainer.run(
        tmp_path / 'run', 'model.name=tiny', 'optimizer.learning_rate=1e30', 'checkpoint.every_steps=1', status=2
    )
    first, second = stopped.err.splitlines()
    last = records(tmp_path / 'run')[-1]
    assert last['skipped_ids'] == batch_indices(0, last['step'] - 1, 256, 32).tolist()
    named = ', '.join(map(str, last['skipped_ids'][:8]))
    assert first == (
        f'error: train/loss is nan at step {last["step"]} (examples {named} and 24 more): '
        'lower optimizer.learning_rate or raise loss.temperature'
    )
    assert '--skip_nonfinite=1' in second
    assert str(tmp_path / 'run' / 'checkpoints') in second
    assert not (tmp_path / 'run' / f'checkpoints/{last["step"]:08d}').exists()


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (('--config=no/such.py',), '--config=no/such.py: no such file'),
        (('--config=configs/default.py', '--config.loss.temprature=1'), 'did you mean loss.temperature?'),
        (
            ('--config=configs/quickstart.py', '--config.queue.size=-1'),
            'config.queue.size=-1: must be between 0 and 2147483647',
        ),
        (('--config=configs/default.py', '--nonsense'), '--nonsense: no such flag'),
        ((), '--config'),
    ],
)
def test_as_a_command(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    """The command behaves as the tests above, which run in this process."""
    import subprocess

    command = [sys.executable, '-m', 'dualcl_jax.main', f'--workdir={tmp_path / "run"}', *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) <= 3
    assert done.stdout == ''
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_without_labels_it_trains(trainer: Trainer, tmp_path: Path) -> None:
    """Missing labels are no error: results that need them are null, and the pictures are still drawn."""
    data = write_npz(tmp_path / 'data.npz', labels=False)
    fields = ('data.image_size=8', 'queue.size=64', 'model.name=tiny', 'model.width=4', 'model.norm=local')
    fields += ('train.batch_size=32', 'train.steps=3', 'log.every_steps=1', 'monitor.every_epochs=1', 'data.name=npz')
    done = trainer.run(tmp_path / 'run', *fields, f'data.path={data}', config='configs/default.py')
    assert done.out.count('kNN accuracy') == done.out.count('not measured: it needs labelled images') == 1
    found = summary(tmp_path / 'run')
    assert {name: value for name, value in found.items() if name.startswith('knn_')} == {
        'knn_top1': None,
        'knn_top1_projection': None,
        'knn_top1_raw_pixels': None,
        'knn_top1_random_encoder': None,
    }
    assert found['step'] == 3
    assert found['loss'] > 0
    for record in records(tmp_path / 'run'):
        assert record['train/false_negative_rate'] is record['train/same_class_rate'] is None
        assert not any(name.startswith('monitor/') for name in record)
    report = json.loads((tmp_path / 'run' / 'data_report.json').read_text())
    assert report['train']['labelled'] == 0
    assert list((tmp_path / 'run' / 'figures').glob('*.png'))
    assert 'The data set has no labels' in (tmp_path / 'run' / 'report.html').read_text()
