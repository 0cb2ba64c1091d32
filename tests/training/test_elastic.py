"""A run that resumes on another number of devices has the losses of an uninterrupted one, or is rejected."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.runs import Trainer, checkpoints, column, contents, died_after, summary

FIELDS = ('train.steps=12', 'checkpoint.every_steps=6', 'negatives.selector=all', 'checkpoint.keep=9')


@pytest.mark.parametrize(
    ('before', 'after', 'fields'),
    [
        pytest.param(1, 4, ('model.norm=local',), marks=pytest.mark.slow),
        (4, 1, ('model.norm=local', 'loss.shuffle_keys=True', 'train.accumulate_steps=2')),
        pytest.param(4, 2, ('model.norm=local', 'parallel.mapper=shard_map'), marks=pytest.mark.slow),
        pytest.param(1, 4, ('model.norm=sync', 'train.accumulate_steps=2'), marks=pytest.mark.slow),
        pytest.param(1, 4, ('model.norm=split:2', 'loss.shuffle_keys=True'), marks=pytest.mark.slow),
        pytest.param(4, 1, ('model.norm=split:8',), marks=pytest.mark.slow),
    ],
)
def test_losses_of_an_uninterrupted_run(
    trainer: Trainer, tmp_path: Path, before: int, after: int, fields: tuple[str, ...]
) -> None:
    whole, workdir = tmp_path / 'whole', tmp_path / 'run'
    trainer.run(whole, *FIELDS, *fields, devices=before)
    assert checkpoints(whole) == [6, 12]
    died_after(whole, 6, to=workdir)
    trainer.run(workdir, *FIELDS, *fields, devices=after)
    assert summary(workdir)['resumed_from_step'] == 6
    losses, expected = column(workdir, 'train/loss'), column(whole, 'train/loss')
    assert len(losses) == 12
    np.testing.assert_array_equal(losses[:6], expected[:6])
    np.testing.assert_allclose(losses[6:], expected[6:], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_number_of_devices_that_cannot_keep_the_groups(trainer: Trainer, tmp_path: Path) -> None:
    fields = ('train.steps=2', 'train.batch_size=24', 'model.norm=local')
    trainer.run(tmp_path / 'run', *fields, devices=4)
    assert summary(tmp_path / 'run')['config']['model']['norm'] == 'split:4'
    before = contents(tmp_path / 'run')
    refused = trainer.run(tmp_path / 'run', *fields, devices=6, status=2)
    assert refused.err == (
        "error: model.norm='split:4': 4 groups do not fit 6 devices; they fit 1, 2, 4 devices, or a multiple of 4\n"
    )
    trainer.run(tmp_path / 'run', *fields, '--dry_run', devices=2)
    assert contents(tmp_path / 'run') == before

    # version 0.1.0 stored 'local'; Orbax recorded the devices in each checkpoint
    stored = tmp_path / 'run' / 'config.json'
    stored.write_text(stored.read_text().replace('split:4', 'local'))
    refused = trainer.run(tmp_path / 'run', *fields, '--dry_run', devices=2, status=2)
    assert refused.err.startswith("error: model.norm='local': ")
    assert refused.err.endswith('resume it on 4 devices, not 2\n')
    trainer.run(tmp_path / 'run', *fields, '--dry_run', devices=4)


@pytest.mark.slow
def test_other_numbers_of_devices_in_turn(trainer: Trainer, tmp_path: Path) -> None:
    """8 devices, then 2, then 4, then 2 processes of one device each give the losses of an uninterrupted run."""
    workdir, whole = tmp_path / 'run', tmp_path / 'whole'
    fields = ('train.steps=12', 'checkpoint.every_steps=4', 'checkpoint.keep=9', 'model.norm=sync')
    trainer.run(whole, *fields)
    trainer.run(workdir, *fields, devices=8)
    died_after(workdir, 4)
    trainer.run(workdir, *fields, devices=2)
    died_after(workdir, 8)
    trainer.run(workdir, *fields, devices=4)
    np.testing.assert_allclose(column(workdir, 'train/loss'), column(whole, 'train/loss'), rtol=0, atol=1e-5)
    died_after(workdir, 4)
    trainer.run_processes(workdir, *fields, processes=2, devices=1)
    assert summary(workdir)['resumed_from_step'] == 4
    np.testing.assert_allclose(column(workdir, 'train/loss'), column(whole, 'train/loss'), rtol=0, atol=1e-5)
