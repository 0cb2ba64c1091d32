"""Runs that are killed, stopped or repeated end where an uninterrupted run ends, bit for bit."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.faults import storage
from tests.support.runs import (
    REPOSITORY,
    Trainer,
    checkpoints,
    column,
    contents,
    died_after,
    finish,
    kill,
    killed_at_last,
    records,
    summary,
    wait_until,
    write_npz,
)

LONG = (
    'train.steps=300',
    'checkpoint.every_steps=10',
    'log.every_steps=7',
    'monitor.every_epochs=10',
)
SHORT = ('train.steps=20', 'checkpoint.every_steps=10', 'monitor.every_epochs=1', 'negatives.selector=all')


@pytest.fixture(scope='module')
def uninterrupted(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp('uninterrupted') / 'run'
    trainer.run(workdir, *LONG)
    return workdir


@pytest.fixture(scope='module')
def complete(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete short run with checkpoints at steps 10 and 20."""
    workdir = tmp_path_factory.mktemp('complete') / 'run'
    trainer.run(workdir, *SHORT)
    assert checkpoints(workdir) == [10, 20]
    return workdir


@pytest.fixture
def halfway(complete: Path, tmp_path: Path) -> Path:
    """A copy of that run in the state of a run that died before it saved step 20."""
    return died_after(complete, 10, tmp_path / 'run')


def assert_same_end(run: Path, expected: Path) -> None:
    assert summary(run)['resumed_from_step'] > 0
    assert summary(run)['state_sha256'] == summary(expected)['state_sha256']
    assert records(run) == records(expected)
    for name in ('step', 'images_seen', 'loss', 'knn_top1', 'knn_top1_raw_pixels', 'knn_top1_random_encoder'):
        assert summary(run)[name] == summary(expected)[name] is not None, name


def test_killed_again_and_again(trainer: Trainer, uninterrupted: Path, tmp_path: Path) -> None:
    """kill -9 stops the run, first while a checkpoint is half-written, then at a random moment."""
    workdir, rng = tmp_path / 'run', random.Random(0)

    def half_written() -> bool:
        return bool(checkpoints(workdir)) and any('tmp' in path.name for path in (workdir / 'checkpoints').iterdir())

    for attempt in range(2):
        reached = max(checkpoints(workdir), default=0)
        with killed_at_last(trainer.start(workdir, *LONG)) as process:
            if attempt == 0:
                wait_until(half_written, process)
            else:
                wait_until(lambda reached=reached: max(checkpoints(workdir), default=0) > reached, process)
                time.sleep(rng.uniform(0, 0.25))
            assert process.poll() is None
            kill(process)
        assert 0 < max(checkpoints(workdir)) < 300
        assert not (workdir / 'summary.json').exists()
    trainer.run(workdir, *LONG)
    assert_same_end(workdir, uninterrupted)


def test_writes_refused_for_a_while(trainer: Trainer, uninterrupted: Path, tmp_path: Path) -> None:
    storage.refused_writes(trainer, tmp_path / 'run', uninterrupted, LONG)


def test_stopped_by_sigterm(trainer: Trainer, uninterrupted: Path, tmp_path: Path) -> None:
    workdir = tmp_path / 'run'
    with killed_at_last(trainer.start(workdir, *LONG, 'checkpoint.every_steps=0')) as process:
        wait_until(lambda: (workdir / 'metrics.jsonl').exists() and len(records(workdir)) > 3, process)
        process.send_signal(signal.SIGTERM)
        stopped = finish(process, status=75)
    [step] = checkpoints(workdir)  # the checkpoint that the signal caused
    assert 0 < step < 300
    assert stopped.out.splitlines()[-1] == (
        f'stopped after step {step} of 300 and saved; run the same command to resume'
    )
    assert stopped.err == ''
    trainer.run(workdir, *LONG, 'checkpoint.every_steps=0')
    assert_same_end(workdir, uninterrupted)
    assert summary(workdir)['resumed_from_step'] == step


@pytest.mark.slow
def test_another_seed_ends_elsewhere(trainer: Trainer, complete: Path, tmp_path: Path) -> None:
    trainer.run(tmp_path / 'other', *SHORT, 'seed=1')
    assert summary(tmp_path / 'other')['state_sha256'] != summary(complete)['state_sha256']
    assert summary(tmp_path / 'other')['resumed_from_step'] is summary(complete)['resumed_from_step'] is None


def test_rerun_of_a_complete_run(trainer: Trainer, complete: Path) -> None:
    before = contents(complete)
    again = trainer.run(complete, *SHORT)
    assert 'done: 20 steps' in again.out
    assert contents(complete) == before


def test_operational_fields_may_change(trainer: Trainer, complete: Path, halfway: Path) -> None:
    changed = ('log.every_steps=3', 'checkpoint.every_steps=5', 'checkpoint.keep=3', 'monitor.k=5')
    trainer.run(halfway, *SHORT, *changed)
    assert summary(halfway)['resumed_from_step'] == 10
    assert summary(halfway)['state_sha256'] == summary(complete)['state_sha256']
    assert checkpoints(halfway) == [10, 15, 20]
    steps = [record['step'] for record in records(halfway) if 'train/loss' in record]
    assert steps == [*range(1, 11), 12, 15, 18, 20]


@pytest.mark.slow  # tests/training/test_elastic.py has fewer devices, local norm and shuffled keys
@pytest.mark.parametrize(('mapper', 'devices'), [('shard_map', 1), ('pmap', 4)])
def test_resumes_with_another_mapper_or_other_devices(
    trainer: Trainer, complete: Path, halfway: Path, mapper: str, devices: int
) -> None:
    """With another mapper or number of devices, data, views and schedule are the same, and so are the losses."""
    trainer.run(halfway, *SHORT, f'parallel.mapper={mapper}', devices=devices)
    assert summary(halfway)['resumed_from_step'] == 10
    losses, expected = column(halfway, 'train/loss'), column(complete, 'train/loss')
    assert len(losses) == 20
    np.testing.assert_array_equal(losses[:10], expected[:10])
    np.testing.assert_allclose(losses[10:], expected[10:], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_queue_resumes_on_other_devices(trainer: Trainer, complete: Path, halfway: Path) -> None:
    """The run moves from one device to four with a quarter of the slots each, then to two; every slot keeps its age."""
    trainer.run(halfway, *SHORT, 'queue.sharded=True', 'checkpoint.every_steps=5', devices=4)
    assert checkpoints(halfway) == [15, 20]
    died_after(halfway, 15)
    trainer.run(halfway, *SHORT, 'queue.sharded=True', 'parallel.mapper=shard_map', devices=2)
    assert summary(halfway)['resumed_from_step'] == 15
    losses, expected = column(halfway, 'train/loss'), column(complete, 'train/loss')
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    ours, theirs = (
        ocp.StandardCheckpointer().restore(run / 'checkpoints' / '00000020' / 'state')['queue']
        for run in (halfway, complete)
    )
    for name in ('ids', 'labels', 'enqueued_at', 'cursor', 'filled'):
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize('change', ['pixels', 'order'])
def test_changed_data_are_refused(trainer: Trainer, halfway: Path, tmp_path: Path, change: str) -> None:
    """The file now contains other images, or the same images in another order."""
    data = tmp_path / 'data.npz'
    write_npz(data, seed=1)
    if change == 'order':
        with np.load(trainer.data) as arrays:
            np.savez(data, **{name: array[::-1] for name, array in arrays.items()})
    config = halfway / 'config.json'  # as if the run had started with that file
    config.write_text(config.read_text().replace(str(trainer.data), str(data)))
    before = contents(halfway)
    refused = trainer.run(halfway, *SHORT, f'data.path={data}', status=2)
    named = {
        'pixels': f'--workdir={halfway}: holds a run with a different data.mean (',
        'order': f'data.path={data}: not the data',
    }
    assert refused.err.startswith('error: ' + named[change])
    assert 'new --workdir' in refused.err.splitlines()[1]
    assert contents(halfway) == before


@pytest.mark.slow
def test_relative_workdir(trainer: Trainer) -> None:
    """Orbax accepts only absolute paths."""
    workdir = Path(os.path.relpath(trainer.folder / 'relative', REPOSITORY))
    trainer.run(workdir, 'train.steps=2')
    assert summary(trainer.folder / 'relative')['step'] == 2
