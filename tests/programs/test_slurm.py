"""`experiments/launch/slurm.sh` in a real SLURM of one node: requeued jobs end like an uninterrupted run."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import slurm
from tests.support.runs import QUICK, REPOSITORY, Trainer, checkpoints, records, summary, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or 'SLURM is here'),
]
FIELDS = ('train.steps=240', 'checkpoint.every_steps=10', 'checkpoint.keep=1', 'log.every_steps=7')
SCRIPT = REPOSITORY / 'experiments' / 'launch' / 'slurm.sh'


@pytest.fixture(scope='module')
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    with slurm.cluster(tmp_path_factory.mktemp('slurm')) as started:
        yield started


def submit(cluster: slurm.Cluster, trainer: Trainer, workdir: Path, *fields: str) -> str:
    """Submits a run of two tasks; returns the number of the job."""
    given = [f'--config.{field}' for field in (f'data.path={trainer.data}', *fields)]
    environment = trainer.environment() | {'PYTHON': sys.executable, 'PYTHONPATH': str(REPOSITORY)}
    options = ['--parsable', '--ntasks=2', '--cpus-per-task=2', f'--chdir={REPOSITORY}', f'--output={workdir}.log']
    flags = [f'--config={QUICK}', f'--workdir={workdir}', *given]
    return cluster.command('sbatch', *options, str(SCRIPT), *flags, **environment).strip()


def wait_for(cluster: slurm.Cluster, number: str, workdir: Path, step: int, restarts: int) -> None:
    """Waits until a job has been requeued so often, and has saved a later step."""

    def there() -> bool:
        state = cluster.job(number)
        assert state['JobState'] in ('PENDING', 'RUNNING', 'COMPLETING', 'CONFIGURING'), (workdir, state)
        return int(state['Restarts']) == restarts and max(checkpoints(workdir), default=0) > step

    wait_until(there, None)


def ended(cluster: slurm.Cluster, number: str) -> dict[str, str]:
    """Waits until a job has ended."""
    wait_until(lambda: cluster.job(number)['JobState'] in ('COMPLETED', 'FAILED'), None)
    return cluster.job(number)


def test_requeued_until_it_has_ended(cluster: slurm.Cluster, trainer: Trainer, tmp_path: Path) -> None:
    """Task 1 is killed with -9, then all tasks are signalled as before a time limit; each time the job is requeued."""
    workdir, whole = tmp_path / 'run', tmp_path / 'whole'
    number = submit(cluster, trainer, workdir, *FIELDS)
    wait_for(cluster, number, workdir, 0, restarts=0)
    killed = cluster.tasks(number)[1]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    saved = max(checkpoints(workdir))
    wait_for(cluster, number, workdir, saved, restarts=1)
    cluster.command('scancel', '--signal=USR1', number)
    state = ended(cluster, number)
    said = (tmp_path / 'run.log').read_text()
    assert (state['JobState'], state['Restarts']) == ('COMPLETED', '2'), (state, said)
    assert 'process 1 on ' in said, said
    assert 'exit status 137: requeued, restart 1' in said, said
    assert 'exit status 75: requeued, restart 2' in said, said
    assert 'and saved; run the same command to resume' in said, said
    trainer.run_processes(whole, *FIELDS, processes=2, devices=1)
    assert summary(workdir)['state_sha256'] == summary(whole)['state_sha256']
    assert records(workdir) == records(whole)


def test_a_mistake_is_not_requeued(cluster: slurm.Cluster, trainer: Trainer, tmp_path: Path) -> None:
    number = submit(cluster, trainer, tmp_path / 'run', 'loss.temperature=-1.0')
    state = ended(cluster, number)
    said = (tmp_path / 'run.log').read_text()
    assert (state['JobState'], state['ExitCode'], state['Restarts']) == ('FAILED', '2:0', '0'), (state, said)
    assert 'loss.temperature' in said
    assert 'requeued' not in said


def test_a_limit_on_restarts(cluster: slurm.Cluster, tmp_path: Path) -> None:
    """A command that always asks for a restart."""
    (tmp_path / 'python').write_text('#!/bin/sh\nexit 75\n')
    (tmp_path / 'python').chmod(0o755)
    options = ['--parsable', f'--chdir={tmp_path}', f'--output={tmp_path}/log']
    environment = {'PYTHON': str(tmp_path / 'python'), 'RESTARTS': '1'}
    state = ended(cluster, cluster.command('sbatch', *options, str(SCRIPT), **environment).strip())
    assert (state['JobState'], state['ExitCode'], state['Restarts']) == ('FAILED', '75:0', '1'), state


DETECT = 'from dualcl_jax.system.processes.places import detect; print(detect())'


def test_a_shell_in_an_allocation_is_one_process(cluster: slurm.Cluster) -> None:
    environment = {'PYTHONPATH': str(REPOSITORY)}
    program = [sys.executable, '-c', DETECT]
    within = ['salloc', '--quiet', '--ntasks=2']
    assert cluster.command(*within, *program, **environment) == 'None\n'
    interactive = ['srun', '--quiet', '--interactive', '--preserve-env']  # as salloc starts a shell at many sites
    assert cluster.command(*within, *interactive, *program, **environment) == 'None\n'
    found = cluster.command(*within, 'srun', '--quiet', *program, **environment).splitlines()
    assert len(found) == 2
    assert all('processes=2' in line for line in found)
