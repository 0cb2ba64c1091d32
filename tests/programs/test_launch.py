"""The launch scripts with mocks of the commands of a cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dualcl_jax.main import parse
from dualcl_jax.system.config import load_config, override
from dualcl_jax.system.processes.places import given
from tests.support.runs import REPOSITORY

LAUNCH = REPOSITORY / 'experiments' / 'launch'
GCLOUD = """#!/bin/bash
echo "$@" >> calls
case $4 in
  ssh) [[ $* == *dualcl_jax.main* ]] && file=statuses || file=setups
    read -r status < $file; sed -i 1d $file; exit "$status" ;;
  create) read -r status < allocations; sed -i 1d allocations; exit "$status" ;;
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


def pod(cluster, folder: Path, files: dict[str, str], *flags: str) -> tuple[int, list[str]]:
    """Runs `tpu_pod.sh run`, where the files have the results of gcloud's commands in turn."""
    for name, values in files.items():
        (folder / name).write_text('\n'.join(values.split()) + '\n')
    names = {'NAME': 'mine', 'ZONE': 'z', 'TYPE': 'v4-32', 'SOURCE': 'https://host/repository'}
    return cluster('tpu_pod.sh', 'run', *flags, commands={'gcloud': GCLOUD}, **names)


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
    files = {'statuses': statuses, 'states': states, 'allocations': '0', 'setups': '0'}
    found, calls = pod(cluster, tmp_path, files, '--config=configs/imagenet.py:moco_v3', '--workdir=gs://bucket/a run')
    assert found == status
    verbs = [call.split()[3] for call in calls if call.startswith('compute')]
    assert verbs.count('create') == verbs.count('delete') == created
    runs = [call for call in calls if 'dualcl_jax.main' in call]
    assert len(runs) == len(statuses.split())
    assert all(r'--workdir=gs://bucket/a\ run' in call and '--worker=all' in call for call in runs)


@pytest.mark.parametrize(
    ('allocations', 'setups', 'status', 'created'),
    [('1 1 0', '0', 0, 3), ('0 0', '1 0', 0, 2), ('0 1 0 0', '1 1 1', 1, 4)],
)
def test_tpu_pod_recreates_its_slice(
    cluster, tmp_path: Path, allocations: str, setups: str, status: int, created: int
) -> None:
    """A slice is deleted before it is made again, also one whose set-up failed; the third such failure ends the run."""
    files = {'statuses': '255 0', 'states': 'PREEMPTED', 'allocations': allocations, 'setups': setups}
    found, calls = pod(cluster, tmp_path, files, '--config=folder')
    assert found == status
    verbs = [call.split()[3] for call in calls if call.startswith('compute')]
    made = [verb for verb in verbs if verb in ('create', 'delete')]
    assert made == ['delete', 'create'] * created
    assert any('uv venv -q --python 3.13' in call for call in calls)


@pytest.mark.parametrize(
    ('status', 'restarts', 'requeued'),
    [(0, 0, False), (2, 0, False), (75, 0, True), (137, 3, True), (1, 4, True), (75, 5, False)],
)
def test_slurm(cluster, tmp_path: Path, status: int, restarts: int, requeued: bool) -> None:
    """All but the end and a mistake are requeued, at most RESTARTS times. See test_slurm.py for a real cluster."""
    commands = {
        'srun': f'#!/bin/bash\necho srun "$@" >> calls\nexit {status}\n',
        'scontrol': '#!/bin/bash\necho scontrol "$@" >> calls\n',
        'sleep': '#!/bin/bash\n',
    }
    job = {'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '12', 'SLURM_RESTART_COUNT': str(restarts), 'RESTARTS': '5'}
    found, calls = cluster('slurm.sh', '--workdir=a b', commands=commands, PYTHON='python3', **job)
    assert found == status
    assert calls[0] == 'srun --kill-on-bad-exit=0 --cpus-per-task=12 python3 -m dualcl_jax.main --workdir=a b'
    assert calls[1:] == (['scontrol requeue 7'] if requeued else [])


def manifest(name: str) -> dict:
    yaml = pytest.importorskip('yaml')
    return yaml.safe_load((LAUNCH / name).read_text())


def test_jobset_fits_the_api() -> None:
    """Strictly: every field of the manifest is one of JobSet's models, which are generated from the same API."""
    models = pytest.importorskip('kubeflow_trainer_api.models', reason='pip install kubeflow-trainer-api')
    job_set = models.JobsetV1alpha2JobSet
    found = manifest('jobset.yaml')
    assert job_set.from_dict(found).to_dict() == found
    found['spec']['replicatedJobs'][0]['template']['spec']['backofLimit'] = 0
    assert job_set.from_dict(found).to_dict() != found  # a field that it does not know is lost


def test_jobset_restarts() -> None:
    """The values that the models leave open, and the parts of the manifest that must agree."""
    found = manifest('jobset.yaml')
    assert (found['apiVersion'], found['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    rule = found['spec']['failurePolicy']['rules'][0]
    assert rule['action'] in ('FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts')
    assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
    (pods,) = found['spec']['replicatedJobs']
    job = pods['template']['spec']
    pod = job['template']['spec']
    (container,) = pod['containers']
    codes = job['podFailurePolicy']['rules'][0]['onExitCodes']
    assert codes == {'containerName': container['name'], 'operator': 'In', 'values': [2]}
    assert (job['backoffLimit'], pod['restartPolicy'], job['completionMode']) == (0, 'Never', 'Indexed')
    mounted = [mount['name'] for mount in container['volumeMounts']]
    assert mounted == [volume['name'] for volume in pod['volumes']]
    flags = [flag.replace('$(JOB_COMPLETION_INDEX)', '3') for flag in container['args']]
    parsed, fields = parse(flags)
    place = given(parsed.coordinator_address, parsed.num_processes, parsed.process_id)
    assert place.processes == job['parallelism'] == job['completions']
    assert place.host == f'{found["metadata"]["name"]}-{pods["name"]}-0-0.{found["metadata"]["name"]}'
    config = load_config(parsed.config)
    override(config, fields)
    assert config.parallel.timeout_s == 600


def test_sky_gives_each_node_a_place(tmp_path: Path) -> None:
    found = manifest('sky.yaml')
    assert found['resources']['job_recovery'] == {'recover_on_exit_codes': [75]}
    script = found['run'].replace('.venv/bin/python', 'echo')
    variables = {'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2', 'SKYPILOT_NUM_NODES': '2', 'SKYPILOT_NODE_RANK': '1'}
    done = subprocess.run(
        ['bash', '-c', script],
        env=os.environ | variables | {'FLAGS': '--config=c --workdir=w'},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[:2] == ['-m', 'dualcl_jax.main']
    parsed, _ = parse(done.stdout.split()[2:])
    place = given(parsed.coordinator_address, parsed.num_processes, parsed.process_id)
    assert place == ('10.0.0.1:8476', 2, 1)
