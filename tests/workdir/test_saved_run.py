"""Opening a finished run for reading: choice of the checkpoint, equal state, unchanged folder, and errors."""

import json
import shutil
from pathlib import Path

import pytest
from etils import epath
from orbax.checkpoint.path import atomicity, atomicity_defaults

from dualcl_jax import evaluate, export, load_encoder, main, report
from dualcl_jax.evaluators.encoder_source import from_workdir
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.checksum import state_sha256
from dualcl_jax.workdir.export import describe
from dualcl_jax.workdir.saved_run import BEST, find_run, open_saved_run, saved_steps
from tests.support.runs import Trainer, contents, records, summary

FIELDS = ('model.name=tiny', 'train.steps=16', 'monitor.every_epochs=1', 'checkpoint.every_steps=4')


@pytest.fixture(scope='module')
def finished(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    trainer.run(workdir, *FIELDS, 'checkpoint.keep=3')
    return workdir


@pytest.fixture
def workdir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that tests may damage."""
    return Path(shutil.copytree(finished, tmp_path / 'run'))


def test_the_state_is_the_one_that_was_saved(finished: Path) -> None:
    before = contents(finished)
    run = open_saved_run(str(finished))
    assert contents(finished) == before
    assert run.step == 16
    assert int(run.state.step) == 16
    assert state_sha256(run.state) == summary(finished)['state_sha256']
    assert run.config.model.name == 'tiny'
    assert run.data_fingerprint == json.loads((finished / 'data_report.json').read_text())['train']['fingerprint']


def test_a_named_step(finished: Path) -> None:
    assert saved_steps(finished) == [8, 12, 16]
    run = open_saved_run(str(finished), '8')
    assert run.step == int(run.state.step) == 8


@pytest.mark.parametrize(
    ('scores', 'best'),
    [
        ({0: 0.9, 8: 0.3, 16: 0.2}, 8),  # 12 has the same measurement, and is further from it
        ({0: 0.9, 12: 0.3, 16: 0.2}, 12),  # that of the encoder before training does not count
        ({0: 0.1, 5: 0.3, 7: 0.2, 16: 0.1}, 8),  # that of step 5 counts for no checkpoint
        ({0: 0.1, 5: 0.3, 11: 0.5, 15: 0.2}, 12),
        ({0: 0.1, 7: 0.3, 12: 0.3, 16: 0.2}, 12),  # equal scores
        ({0: 0.1, 8: 0.3, 12: None, 16: 0.2}, 8),  # a measurement that is not finite
        ({3: 0.1}, 8),
    ],
)
def test_the_best_step_is_the_nearest_to_the_best_measurement(
    workdir: Path, scores: dict[int, float | None], best: int
) -> None:
    name = 'monitor/knn_top1_backbone'
    records = [{'step': step, name: score} for step, score in scores.items()] + [{'step': 16}]
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    assert open_saved_run(str(workdir), BEST).step == best


def test_the_best_state_is_saved_as_it_was_measured(finished: Path, trainer: Trainer, tmp_path: Path) -> None:
    """The monitor measures after every 8 steps. Saving then changes nothing else."""
    trainer.run(tmp_path, *FIELDS, 'checkpoint.every_steps=5', 'checkpoint.keep=9', 'checkpoint.keep_best=1')
    assert saved_steps(epath.Path(tmp_path)) == [5, 8, 10, 15, 16]
    assert summary(tmp_path)['state_sha256'] == summary(finished)['state_sha256']
    assert records(tmp_path) == records(finished)


@pytest.mark.parametrize(('fraction', 'on'), [(0.0, 'test'), (0.25, 'validation')])
def test_the_best_step_tells_what_it_was_chosen_on(
    workdir: Path, capsys: pytest.CaptureFixture[str], fraction: float, on: str
) -> None:
    """A choice on the test images makes the results on them too high."""
    config = json.loads((workdir / 'config.json').read_text())
    config['data']['validation_fraction'] = fraction
    (workdir / 'config.json').write_text(json.dumps(config))
    name = 'monitor/knn_top1_backbone'
    (workdir / 'metrics.jsonl').write_text(json.dumps({'step': 8, name: 0.3}) + '\n')
    run = open_saved_run(str(workdir), BEST)
    printed = capsys.readouterr().out
    assert run.chosen_by == {'metric': name, 'on': on}
    assert describe(run, encoder='query', projection=False)[0].provenance['step_chosen_by'] == run.chosen_by
    assert ('note: --step=best: step 8 was chosen by its kNN accuracy on the test examples' in printed) == (
        on == 'test'
    )
    assert from_workdir(str(workdir), BEST).provenance['step_chosen_by']['on'] == on
    capsys.readouterr()
    for step in ('16', 'latest'):
        assert open_saved_run(str(workdir), step).chosen_by is None
        assert 'step_chosen_by' not in from_workdir(str(workdir), step).provenance
    assert 'note' not in capsys.readouterr().out


@pytest.mark.parametrize('step', ['9', '-8', 'newest', ''])
def test_other_steps_are_refused(finished: Path, step: str) -> None:
    with pytest.raises(UserError, match=f'--step={step}: .* has checkpoints of 8, 12, 16'):
        open_saved_run(str(finished), step)


@pytest.fixture
def unfinished(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose checkpoint of step 16 is half-written, on a file system without renaming, such as gs://."""
    monkeypatch.setattr(
        atomicity_defaults,
        'get_default_temporary_path_class',
        lambda path, atomicity_options=None: atomicity.CommitFileTemporaryPath,
    )
    (workdir / 'checkpoints/00000016/commit_success.txt').unlink()
    shutil.rmtree(workdir / 'checkpoints/00000016/state')
    return workdir


@pytest.mark.slow
def test_a_checkpoint_that_is_not_finished(unfinished: Path, tmp_path: Path, trainer: Trainer, in_process) -> None:
    """Every program takes the newest finished one, and says which steps there are."""
    assert saved_steps(unfinished) == [8, 12]
    assert open_saved_run(str(unfinished)).step == 12
    with pytest.raises(UserError, match='has checkpoints of 8, 12;'):
        open_saved_run(str(unfinished), '16')
    here = f'--workdir={unfinished}'
    encoder = tmp_path / 'encoder.safetensors'
    assert in_process(export.main, here, '--format=safetensors', f'--output={encoder}').status == 0
    assert load_encoder(str(encoder)).description.step == 12
    done = in_process(evaluate.main, here, '--protocols=structure', f'--config.data.path={trainer.data}')
    assert done.status == 0, done
    assert {record['step'] for record in json.loads(done.out.splitlines()[-1])['records']} == {12}
    assert in_process(report.main, here, f'--output={tmp_path}/report.html').status == 0
    fields = [f'--config.{field}' for field in (*FIELDS, f'data.path={trainer.data}')]
    train = ('--config=tests/support/quick_config.py', *fields)
    done = in_process(main.main, *train, here, '--dry_run')
    assert 'from step 12' in done.out, done
    done = in_process(main.main, *train, f'--workdir={tmp_path}/new', f'--init_from={unfinished}', '--dry_run')
    assert done.status == 0, done


def test_no_run(tmp_path: Path) -> None:
    for path in ('', str(tmp_path), str(tmp_path / 'nothing')):
        with pytest.raises(UserError, match=f'--of={path}: no run with a checkpoint'):
            find_run(path, flag='--of')
    assert not contents(tmp_path)


def test_damage_is_one_error(workdir: Path) -> None:
    (workdir / 'metrics.jsonl').unlink()
    with pytest.raises(UserError, match='has no kNN accuracy'):
        open_saved_run(str(workdir), BEST)
    for path in (workdir / 'checkpoints' / '00000016' / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match='00000016: cannot be read'):
        open_saved_run(str(workdir))
    (workdir / 'config.json').write_text('{"seed": 0}')
    with pytest.raises(UserError, match=r'config\.json: not a config of this version'):
        open_saved_run(str(workdir), '8')
