"""A run of configs/folder.py chooses what is open from the set, prints it, stores it and keeps it; what is set wins."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dualcl_jax import main
from dualcl_jax.training import loop
from tests.support.image_folders import named, write_images
from tests.support.runs import Finished, summary
from tests.support.text_runs import write_pairs

SMALL = ('--config.model.name=tiny', '--config.train.steps=2', '--config.log.pictures=False')


@pytest.fixture
def command(in_process, tmp_path: Path) -> Callable[..., Finished]:
    """Runs the command on a folder of 48 images of two classes."""
    write_images(tmp_path / 'photos', named(('cat', 'dog'), 24))

    def run(*flags: str) -> Finished:
        given = (f'--config.data.path={tmp_path}/photos', f'--workdir={tmp_path}/run')
        return in_process(main.main, '--config=folder', *given, *SMALL, *flags)

    return run


def test_choices_are_printed_stored_and_kept(command, tmp_path: Path) -> None:
    first = command('--config.loss.temperature=0.3')
    assert first.status == 0, first
    facts = dict(line.split(maxsplit=1) for line in first.out.splitlines() if line.startswith('chosen'))
    assert 'images on ' in facts['chosen']
    assert 'train.batch_size=' in facts['chosen']
    assert 'temperature' not in facts['chosen']
    assert 'after step 1 of 2' in first.out
    assert '--init_from' in first.out
    stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert stored['loss']['temperature'] == 0.3
    assert f'train.batch_size={stored["train"]["batch_size"]} ' in facts['chosen']
    done = summary(tmp_path / 'run')
    assert done['config']['model']['width'] == stored['model']['width'] > 0

    changed = tmp_path / 'run' / 'config.json'  # as if another version, or another machine, had chosen
    stored['optimizer']['learning_rate'] = 0.125
    changed.write_text(json.dumps(stored))
    again = command('--config.loss.temperature=0.3', '--dry_run')
    assert 'optimizer.learning_rate=0.125' in again.out
    assert '\nfirst look ' in again.out
    unmeasured = command('--config.loss.temperature=0.3', '--dry_run', '--config.monitor.every_epochs=0')
    assert 'chosen ' in unmeasured.out
    assert 'first look' not in unmeasured.out
    refused = command('--config.loss.temperature=0.3', '--config.train.batch_size=16', '--dry_run')
    assert refused.status == 2
    assert 'a different train.batch_size' in refused.err


@pytest.mark.parametrize(
    ('problem', 'status'),
    [(MemoryError('4 TiB'), 0), (ValueError('NaN'), 0), (OSError(errno.ENOSPC, 'No space left on device'), 2)],
)
def test_a_run_is_complete_without_its_pictures(command, tmp_path: Path, monkeypatch, problem, status: int) -> None:
    def fail(*given: object) -> None:
        raise problem

    monkeypatch.setattr(loop, 'draw_pictures', fail)
    done = command('--config.log.pictures=True')
    assert done.status == status, done
    assert (tmp_path / 'run' / 'summary.json').exists() == (status == 0)
    said = f'the pictures cannot be drawn ({type(problem).__name__}: {problem}); dualcl report --workdir={tmp_path}/run'
    assert (said in ''.join(done.out.split('\n'))) == (status == 0), done


def test_choices_are_for_images(command, tmp_path: Path) -> None:
    refused = command(
        '--config.data.name=text',
        '--config.data.columns=0,1',
        f'--config.data.path={write_pairs(tmp_path / "pairs.tsv")}',
        '--config.views.preset=simcse',
        '--config.model.name=bag',
    )
    assert refused.status == 2
    assert 'is chosen automatically for images only' in refused.err
