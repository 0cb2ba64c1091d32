"""The launch scripts with mocks of the commands of a cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.runs import REPOSITORY

LAUNCH = REPOSITORY / 'experiments' / 'launch'
GCLOUD = """#!/bin/bash
echo "$@" >> calls
case $4 in
  ssh) [[ $* == *dualcl_jax.main* ]] || exit 0
    read -r status < statuses; sed -i 1d statuses; exit "$status" ;;
  describe) read -r found < states; sed -i 1d states; echo "$found" ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path):
    """Runs a script with these commands on PATH; returns its exit status and the arguments of the commands."""
    if not shutil.which('bash'):
        pytest.skip('no bash')

    def run(script: str, *flags: str, commands: dict[str, str], **variables: str) -> tuple[int, list[str]]:
        for name, content in commands.items():
            (tmp_path / name).write_text(content)
            (tmp_path / name).chmod(0o755)
        environment = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'PAUSE': '0'} | variables
        done = subprocess.run(['bash', LAUNCH / script, *flags], cwd=tmp_path, env=environment, check=False, timeout=60)
        calls = tmp_path / 'calls'
        return done.returncode, calls.read_text().splitlines() if calls.exists() else []

    return run


@pytest.mark.parametrize(
    ('statuses', 'states', 'status', 'created'),
    [
        ('0', '', 0, 0),
        ('2', '', 2, 0),
        ('255 75 0', 'PREEMPTED READY', 0, 1),
        ('1 1 1', 'READY READY READY', 1, 0),
        ('1 1 255 1 1 0', 'READY READY GONE READY READY', 0, 1),
    ],
)
def test_tpu_pod(cluster, tmp_path: Path, statuses: str, states: str, status: int, created: int) -> None:
    for name, values in {'statuses': statuses, 'states': states}.items():
        (tmp_path / name).write_text('\n'.join(values.split()) + '\n')
    names = {'NAME': 'mine', 'ZONE': 'z', 'TYPE': 'v4-32', 'SOURCE': 'https://host/repository'}
    flags = ('run', '--config=configs/imagenet.py:moco_v3', '--workdir=gs://bucket/a run')
    found, calls = cluster('tpu_pod.sh', *flags, commands={'gcloud': GCLOUD}, **names)
    assert found == status
    verbs = [call.split()[3] for call in calls]
    assert verbs.count('create') == verbs.count('delete') == created
    runs = [call for call in calls if 'dualcl_jax.main' in call]
    assert len(runs) == len(statuses.split())
    assert all(r'--workdir=gs://bucket/a\ run' in call and '--worker=all' in call for call in runs)


@pytest.mark.parametrize('status', [0, 2, 75])
def test_slurm(cluster, tmp_path: Path, status: int) -> None:
    srun = f'#!/bin/bash\necho srun "$@" >> calls\nexit {status}\n'
    scontrol = '#!/bin/bash\necho scontrol "$@" >> calls\n'
    found, calls = cluster(
        'slurm.sh', '--workdir=a b', commands={'srun': srun, 'scontrol': scontrol}, SLURM_JOB_ID='7', PYTHON='python3'
    )
    assert found == status
    assert calls[0] == 'srun --kill-on-bad-exit=0 python3 -m dualcl_jax.main --workdir=a b'
    assert calls[1:] == (['scontrol requeue 7'] if status == 75 else [])
