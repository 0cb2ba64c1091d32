"""`experiments/launch/ray_run.py` under a real Ray on this machine: its restarts end like an uninterrupted run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import (
    QUICK,
    REPOSITORY,
    TIMEOUT,
    Trainer,
    checkpoints,
    finish,
    killed_at_last,
    records,
    summary,
    wait_until,
)

pytest.importorskip('ray.train', reason="needs Ray: pip install -e '.[ray]'")
pytestmark = pytest.mark.slow
FIELDS = ('train.steps=240', 'checkpoint.every_steps=10', 'checkpoint.keep=1', 'log.every_steps=7')


def run(trainer: Trainer, workdir: Path, *fields: str) -> subprocess.Popen[str]:
    """Starts a run of two workers on a Ray of its own."""
    program = [sys.executable, 'experiments/launch/ray_run.py', '--workers=2', f'--folder={REPOSITORY}', '--']
    given = [f'--config.{field}' for field in (f'data.path={trainer.data}', *fields)]
    own = {'RAY_ADDRESS': '', 'RAY_TMPDIR': '/tmp', 'PYTHONPATH': str(REPOSITORY), 'HOME': str(trainer.folder)}
    own['RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S'] = str(TIMEOUT)
    with (workdir.parent / f'{workdir.name}.log').open('w') as log:
        return subprocess.Popen(
            [*program, f'--config={QUICK}', f'--workdir={workdir}', *given],
            cwd=REPOSITORY,
            env=trainer.environment() | own,
            stdout=log,
            stderr=log,
            text=True,
        )


def processes(workdir: Path) -> dict[int, int]:
    """The processes that train in a workdir, by index."""
    found = {}
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            words = (folder / 'cmdline').read_bytes().decode().split('\0')
        except OSError:  # it has ended
            continue
        if 'dualcl_jax.main' in words and f'--workdir={workdir}' in words:
            index = next(word for word in words if word.startswith('--process_id='))
            found[int(index.partition('=')[2])] = int(folder.name)
    return found


def test_restarted_until_it_has_ended(trainer: Trainer, tmp_path: Path) -> None:
    """Process 1 is killed with -9, then both are signalled."""
    workdir, whole = tmp_path / 'run', tmp_path / 'whole'
    with killed_at_last(run(trainer, workdir, *FIELDS)) as driver:
        saved = 0
        for number, whom in ((signal.SIGKILL, (1,)), (signal.SIGTERM, (0, 1))):
            wait_until(lambda: max(checkpoints(workdir), default=0) > saved, driver)  # noqa: B023
            started = processes(workdir)
            saved = max(checkpoints(workdir))
            for index in whom:
                os.kill(started[index], number)
        finish(driver, 0)
    said = (tmp_path / 'run.log').read_text()
    assert 'exit status -9: run the same command again' in said or 'exit status 75' in said, said
    assert summary(workdir)['resumed_from_step'] > 0
    trainer.run_processes(whole, *FIELDS, processes=2, devices=1)
    assert summary(workdir)['state_sha256'] == summary(whole)['state_sha256']
    assert records(workdir) == records(whole)


def test_a_mistake_is_not_restarted(trainer: Trainer, tmp_path: Path) -> None:
    with killed_at_last(run(trainer, tmp_path / 'run', 'loss.temperature=-1.0')) as driver:
        finish(driver, 2)
    said = (tmp_path / 'run.log').read_text()
    assert 'loss.temperature' in said
    assert 'run the same command again' not in said
