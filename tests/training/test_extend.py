"""A run can become longer, and its data may move."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import default
from dualcl_jax import data, report
from dualcl_jax.method.optim import learning_rate_schedule
from tests.support.bad_files import encode, photo
from tests.support.runs import Trainer, checkpoints, column, contents, died_after, summary, write_npz
from tests.support.tfds_sets import COLOUR, examples, write_set

FIELDS = ('model.name=tiny', 'negatives.selector=top_k', 'checkpoint.every_steps=10', 'checkpoint.keep=9')


@pytest.fixture(scope='module')
def complete(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of 20 steps."""
    workdir = tmp_path_factory.mktemp('complete') / 'run'
    trainer.run(workdir, *FIELDS)
    return workdir


@pytest.fixture
def workdir(complete: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(complete, tmp_path / 'run'))


def test_a_longer_run(trainer: Trainer, workdir: Path, tmp_path: Path) -> None:
    """It continues from the last state, with the schedule of the new length, and resumes as any run does."""
    longer = (*FIELDS, 'train.steps=40')
    assert '--extend' in trainer.run(workdir, *longer, status=2).err
    assert 'resuming from step 20' in trainer.run(workdir, *longer, '--extend', '--dry_run').out
    before = (workdir / 'summary.json').read_bytes()
    trainer.run(workdir, *longer, '--extend')
    found = summary(workdir)
    assert (found['step'], found['resumed_from_step'], found['extended_at']) == (40, 20, [20])
    rates = column(workdir, 'train/learning_rate')
    short, long = (learning_rate_schedule(0.01, total, 0) for total in (20, 40))
    expected = [float((short if step < 20 else long)(step)) for step in range(40)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)
    assert rates[20] > 50 * rates[19]  # a cosine that had ended rises again

    died_after(workdir, 30)
    trainer.run(workdir, *longer)  # no flag: this is now the length of the run
    again = summary(workdir)
    assert again['state_sha256'] == found['state_sha256']
    assert (again['resumed_from_step'], again['extended_at']) == (30, [20])
    assert checkpoints(workdir) == [10, 20, 30, 40]

    (workdir / 'summary.json').write_bytes(before)  # as if it had been killed after its last checkpoint
    assert 'done: 40 steps' in trainer.run(workdir, *longer).out
    assert summary(workdir)['state_sha256'] == found['state_sha256']


@pytest.mark.slow
def test_epochs_may_be_raised(trainer: Trainer, tmp_path: Path) -> None:
    fields = (*FIELDS, 'train.steps=0')
    trainer.run(tmp_path / 'run', *fields, 'train.epochs=1')
    trainer.run(tmp_path / 'run', *fields, 'train.epochs=2', '--extend')
    assert summary(tmp_path / 'run')['step'] == 16


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--extend', 'train.steps=10'), 'has 20 steps, but this config only 10; raise train.epochs or train.steps'),
        (('--extend', 'train.steps=40', 'loss.temperature=0.3'), 'different loss.temperature (0.1, now 0.3)'),
        (('train.steps=40',), 'add --extend to train that run longer, or use a new --workdir, where --init_from='),
    ],
)
def test_what_cannot_be_extended(trainer: Trainer, workdir: Path, flags: tuple[str, ...], message: str) -> None:
    before = contents(workdir)
    done = trainer.run(workdir, *FIELDS, *flags, status=2)
    assert message in done.err
    assert len(done.err.splitlines()) <= 3
    assert contents(workdir) == before


def test_there_is_no_run_to_extend(trainer: Trainer, tmp_path: Path) -> None:
    assert 'holds no run' in trainer.run(tmp_path / 'new', *FIELDS, '--extend', status=2).err


def test_moved_data(trainer: Trainer, workdir: Path, tmp_path: Path, in_process) -> None:
    """The same data at another path resume, and other data do not."""
    expected = summary(workdir)['state_sha256']
    died_after(workdir, 10)
    other = write_npz(tmp_path / 'other.npz', seed=1)
    for flags, changed in (
        ((), 'a different data.mean ('),
        (('--dry_run',), 'a different data.mean ('),
        (('data.mean=0.5', 'data.std=0.2'), 'now (0.5,)), data.std ('),
    ):
        done = trainer.run(workdir, *FIELDS, f'data.path={other}', *flags, status=2)
        first, second = done.err.splitlines()
        assert changed in first
        assert second == f'data.path={other} has other images: use a new --workdir, or the images of that run'
    (tmp_path / 'elsewhere').mkdir()
    moved = shutil.copy(trainer.data, tmp_path / 'elsewhere')
    trainer.run(workdir, *FIELDS, f'data.path={moved}')
    assert summary(workdir)['state_sha256'] == expected
    assert summary(workdir)['config']['data']['path'] == str(moved)
    Path(moved).unlink()
    flags = (f'--workdir={workdir}', f'--output={tmp_path}/report.html')
    assert in_process(report.main, *flags).status == 2
    assert in_process(report.main, *flags, f'--config.data.path={other}').status == 2
    assert in_process(report.main, *flags, f'--config.data.path={trainer.data}').status == 0
    assert in_process(report.main, *flags, '--config.data.image_size=4').status == 2


@pytest.mark.slow
def test_other_data_with_the_mean_of_the_run(trainer: Trainer, tmp_path: Path) -> None:
    """The fingerprint decides, also if the config has the statistics of the images."""
    fields = (*FIELDS, 'data.mean=0.5', 'data.std=0.2', 'train.steps=10')
    trainer.run(tmp_path / 'run', *fields)
    other = write_npz(tmp_path / 'other.npz', seed=1)
    for flags in ((), ('--dry_run',)):
        done = trainer.run(tmp_path / 'run', *fields, f'data.path={other}', *flags, status=2)
        assert f'data.path={other}: not the data that {tmp_path}/run was trained on' in done.err
    (tmp_path / 'run/data_report.json').unlink()
    done = trainer.run(tmp_path / 'run', *fields, f'data.path={other}', status=2)
    assert f'data.path={other}: not the data that {tmp_path}/run was trained on' in done.err


def test_fingerprints_do_not_depend_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for seed in range(8):
        file = tmp_path / f'a/images/{"ant" if seed % 2 else "bee"}/{seed}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(photo(seed, 20, 20), 'PNG'))
    write_set(tmp_path / 'a/sets', {'train': examples(9, 16, 16, 3), 'test': examples(4, 16, 16, 3)}, COLOUR)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    for choice in ({'path': 'images'}, {'path': 'images', 'memory_bytes': 0}, {'name': 'tiny', 'data_dir': 'sets'}):
        found = []
        for place in ('a', 'b'):
            fields = default.get_config().data
            fields.update({'name': 'folder', 'image_size': 16, 'test_fraction': 0.5} | choice)
            fields.update({name: f'{tmp_path}/{place}/{fields[name]}' for name in ('path', 'data_dir') if fields[name]})
            found.append([split.fingerprint for split in data.load(fields)])
        assert found[0] == found[1]
