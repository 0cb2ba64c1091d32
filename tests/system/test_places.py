"""The place of a process and its GPUs, from the environments of schedulers."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from dualcl_jax.system import private_jax
from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.processes import places
from dualcl_jax.system.processes.places import Place

PREFIXES = (
    'SLURM_',
    'OMPI_',
    'JOB_COMPLETION',
    'KUBERNETES_',
    'JAX_COORD',
    'TPU_',
    *places.SCHEDULERS,
    *places.VISIBLE,
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """Sets the variables of a scheduler, and removes all others of schedulers."""

    def replace(variables: dict[str, object], gpus: int = 0) -> None:
        for name in list(places.os.environ):
            if name.startswith(PREFIXES):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(places.glob, 'glob', lambda pattern: [f'/dev/nvidia{i}' for i in range(gpus)])

    replace({})
    return replace


def task(node: int, local: int, *, nodes: int, tasks: int, gpus: str, on_node: int) -> dict[str, object]:
    """The variables of a task that `srun` of SLURM 22.05 starts, as recorded there with four and eight GPUs."""
    return {
        'SLURM_JOB_ID': 5000,
        'SLURM_STEP_ID': 0,
        'SLURM_NTASKS': nodes * tasks,
        'SLURM_STEP_NUM_TASKS': nodes * tasks,
        'SLURM_STEP_NODELIST': f'a[1-{nodes}]',
        'SLURM_STEP_TASKS_PER_NODE': f'{tasks}(x{nodes})' if nodes > 1 else tasks,
        'SLURM_NODEID': node,
        'SLURM_LOCALID': local,
        'SLURM_PROCID': node * tasks + local,
        'SLURM_GPUS_ON_NODE': on_node,
        'CUDA_VISIBLE_DEVICES': gpus,
    }


def seen_by_jax(monkeypatch: pytest.MonkeyPatch) -> str:
    """The devices to which JAX limits itself when this process joins as `start` does, without the service."""
    import jax
    from jax._src import distributed

    from dualcl_jax.system.processes import start

    found = {}
    client = SimpleNamespace(connect=lambda: None)
    state = distributed.State()
    monkeypatch.setattr(distributed, 'global_state', state)
    monkeypatch.setattr(distributed.xla_bridge, 'backends_are_initialized', lambda: False)
    monkeypatch.setattr(distributed._jax, 'get_distributed_runtime_client', lambda *_, **__: client)
    monkeypatch.setattr(distributed._jax, 'get_distributed_runtime_service', lambda *_, **__: None)
    monkeypatch.setattr(start.supervisor, 'start', lambda *_, **__: None)
    monkeypatch.setattr(distributed.config, 'update', found.__setitem__)
    place = places.detect() or Place('a1:1234', 1, 0)
    start._join(place, 20)
    assert (state.process_id, state.num_processes) == (place.process, place.processes)
    assert jax.distributed.is_initialized()
    return found.get('jax_cuda_visible_devices', 'all')


@pytest.mark.parametrize(('node', 'local'), [(node, local) for node in range(2) for local in range(4)])
def test_a_gpu_per_task(environment, monkeypatch: pytest.MonkeyPatch, node: int, local: int) -> None:
    """2 nodes × 4 tasks × 1 GPU: each task sees one, which is its device 0 whatever its index on the node."""
    environment(task(node, local, nodes=2, tasks=4, gpus=str(local), on_node=4), gpus=4)
    assert places.detect() == Place('a1:62344', 8, 4 * node + local)
    assert seen_by_jax(monkeypatch) == '0'


@pytest.mark.parametrize('node', range(2))
def test_a_task_per_node(environment, monkeypatch: pytest.MonkeyPatch, node: int) -> None:
    """2 nodes × 1 task × 8 GPUs: a task uses all."""
    environment(task(node, 0, nodes=2, tasks=1, gpus='0,1,2,3,4,5,6,7', on_node=8), gpus=8)
    assert places.detect() == Place('a1:62344', 2, node)
    assert seen_by_jax(monkeypatch) == '0,1,2,3,4,5,6,7'


@pytest.mark.parametrize(('tasks', 'local', 'used'), [(4, 3, '3'), (2, 1, '2,3'), (1, 0, '0,1,2,3')])
def test_tasks_that_see_the_same_gpus_share_them(
    environment, monkeypatch: pytest.MonkeyPatch, tasks: int, local: int, used: str
) -> None:
    environment(task(0, local, nodes=2, tasks=tasks, gpus='0,1,2,3', on_node=4), gpus=8)
    assert seen_by_jax(monkeypatch) == used


@pytest.mark.parametrize('local', range(8))
def test_a_task_for_each_gpu_of_a_node(environment, local: int) -> None:
    """As `experiments/launch/slurm.sh` gives them: --ntasks-per-node=8 --gpus-per-node=8."""
    environment(task(1, local, nodes=2, tasks=8, gpus='0,1,2,3,4,5,6,7', on_node=8), gpus=8)
    assert places.local_devices() == [local]


def test_gpus_that_cannot_be_shared(environment) -> None:
    environment(task(0, 2, nodes=1, tasks=3, gpus='0,1,2,3', on_node=4), gpus=4)
    with pytest.raises(UserError, match='3 processes on this machine cannot share 4 GPUs evenly'):
        places.local_devices()


def test_nodes_with_different_numbers_of_tasks(environment) -> None:
    variables = task(2, 1, nodes=3, tasks=4, gpus='0,1,2,3', on_node=4)
    environment(variables | {'SLURM_STEP_TASKS_PER_NODE': '4(x2),2'})
    assert places.local_devices() == [2, 3]


def test_machines_without_a_scheduler(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    environment({})
    assert places.detect() is None
    assert places.local_devices() is None
    assert seen_by_jax(monkeypatch) == 'all'
    environment({}, gpus=8)
    assert places.local_devices() == list(range(8))


STEP = task(1, 0, nodes=4, tasks=1, gpus='', on_node=0)


@pytest.mark.parametrize(
    ('nodes', 'host'),
    [('a7', 'a7'), ('a[7-9,12],b1', 'a7'), ('gpu-[003,010]', 'gpu-003'), ('n1,n2', 'n1'), ('n1.x.org', 'n1.x.org')],
)
def test_slurm(environment, nodes: str, host: str) -> None:
    environment(STEP | {'SLURM_STEP_NODELIST': nodes})
    assert places.detect() == Place(f'{host}:62344', 4, 1)
    environment(STEP | {'SLURM_STEP_NODELIST': nodes, 'JAX_COORDINATOR_PORT': 7000})
    assert places.detect() == Place(f'{host}:7000', 4, 1)


ALLOCATION = {
    'SLURM_JOB_ID': 5000,
    'SLURM_NTASKS': 4,
    'SLURM_NODELIST': 'a[1-4]',
    'SLURM_PROCID': 0,
    'SLURM_LOCALID': 0,
}
SHELL = {'SLURM_STEP_NODELIST': 'a1', 'SLURM_STEP_ID': 4294967290, 'SLURM_STEP_NUM_TASKS': 1}


@pytest.mark.parametrize('more', [{}, SHELL])
def test_a_shell_in_an_allocation_is_one_process(environment, more: dict) -> None:
    """A batch script, and the shells of `salloc`, with and without an interactive step."""
    environment(ALLOCATION | more)
    assert places.detect() is None


def test_programs_of_one_process_join_no_others(environment) -> None:
    environment(STEP)
    assert places.detect(several=False) is None


MPI = {
    'OMPI_COMM_WORLD_SIZE': 4,
    'OMPI_COMM_WORLD_RANK': 3,
    'OMPI_COMM_WORLD_LOCAL_SIZE': 2,
    'OMPI_COMM_WORLD_LOCAL_RANK': 1,
    'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
}


def test_open_mpi(environment) -> None:
    environment(MPI, gpus=8)
    found = places.detect()
    assert found is not None
    assert found[1:] == (4, 3)
    assert found.host == '10.96.0.1'
    assert places.local_devices() == [4, 5, 6, 7]
    environment(MPI | {'OMPI_COMM_WORLD_SIZE': 1})
    assert places.detect() is None


def test_open_mpi_that_jax_cannot_use(environment) -> None:
    """Version 5 needs mpi4py, or a version of JAX that knows it."""
    environment({name: value for name, value in MPI.items() if 'uri' not in name})
    if private_jax.importlib.util.find_spec('mpi4py'):
        pytest.skip('mpi4py is installed')
    with pytest.raises(UserError, match=r'^Open MPI: .*--coordinator_address'):
        places.detect()


class ApiError(Exception):
    status, reason = 403, 'Forbidden'


def cluster(monkeypatch: pytest.MonkeyPatch, pods: int | None, name: str = 'mine') -> None:
    """The package `kubernetes` for a pod of a Job of a JobSet; None: it may not read its Job."""

    def read(**_: object) -> object:
        if pods is None:
            raise ApiError
        labels = {'jobset.sigs.k8s.io/jobset-name': name}
        return SimpleNamespace(
            spec=SimpleNamespace(parallelism=pods), metadata=SimpleNamespace(name='j', labels=labels)
        )

    owner = SimpleNamespace(controller=True, kind='Job')
    metadata = SimpleNamespace(name='pod', labels={'job-name': 'j'}, owner_references=[owner])
    pod = SimpleNamespace(metadata=metadata, spec=SimpleNamespace(subdomain=None))
    core = SimpleNamespace(list_namespaced_pod=lambda **_: SimpleNamespace(items=[pod]))
    package = ModuleType('kubernetes')
    package.config = SimpleNamespace(load_incluster_config=lambda: None)  # type: ignore[attr-defined]
    package.client = SimpleNamespace(  # type: ignore[attr-defined]
        CoreV1Api=lambda: core,
        BatchV1Api=lambda: SimpleNamespace(read_namespaced_job=read),
        exceptions=SimpleNamespace(ApiException=ApiError),
    )
    monkeypatch.setitem(sys.modules, 'kubernetes', package)
    find = private_jax.importlib.util.find_spec
    monkeypatch.setattr(private_jax.importlib.util, 'find_spec', lambda n: n if n == 'kubernetes' else find(n))
    found = private_jax.interface('jax._src.clusters.k8s_cluster').K8sCluster
    for cached in ('_pod', '_job', '_controller'):
        getattr(found, cached).cache_clear()
    monkeypatch.setattr(found, '_namespace', classmethod(lambda cls: 'default'))
    module = sys.modules[found.__module__]
    monkeypatch.setattr(module.socket, 'gethostbyname', lambda name: '10.0.0.1')
    monkeypatch.setenv('HOSTNAME', 'pod')


POD = {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}
INDEXED = POD | {'JOB_COMPLETION_INDEX': 2}


def test_kubernetes(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(INDEXED)
    cluster(monkeypatch, 4)
    found = places.detect()
    assert found is not None
    assert found.host == 'j-0.mine'
    assert found[1:] == (4, 2)
    cluster(monkeypatch, 1)
    assert places.detect() is None


@pytest.mark.parametrize(
    ('variables', 'pods', 'said'),
    [
        (INDEXED, None, 'this pod cannot determine the number of pods (Kubernetes API Error: 403 - Forbidden)'),
        (POD, 4, '4 pods without an index; set completionMode: Indexed'),
    ],
)
def test_pods_without_a_place_to_meet(environment, monkeypatch, variables: dict, pods: int | None, said: str) -> None:
    environment(variables)
    cluster(monkeypatch, pods)
    with pytest.raises(UserError) as refused:
        places.detect()
    assert said in str(refused.value)
    assert '--coordinator_address' in str(refused.value)


def test_pods_without_the_package(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_jax.importlib.util, 'find_spec', lambda name: None)
    environment(INDEXED)
    with pytest.raises(UserError, match='the package kubernetes is not installed'):
        places.detect()
    environment(POD)
    assert places.detect() is None


@pytest.mark.parametrize(
    ('error', 'kind'),
    [
        (RuntimeError('Failed to recognize coordinator address t1k-0'), RestartError),
        (ConnectionError('metadata'), RestartError),
        (ValueError('unsupported worker-network-endpoints format'), UserError),
    ],
)
def test_a_tpu_slice_that_is_not_ready(environment, monkeypatch, error: Exception, kind: type) -> None:
    def fail() -> None:
        raise error

    environment({'JAX_PLATFORMS': 'tpu'})
    monkeypatch.setattr(places, 'has_tpu', lambda: True)
    monkeypatch.setattr(places, 'tpu_place', fail)
    with pytest.raises(UserError) as said:
        places.detect()
    assert type(said.value) is kind
    assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize('address', ['host', 'host:', ':80', 'host:http', 'host:0', 'host:65536', '::1:80', 'fe80::1'])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UserError, match=r'must be HOST:PORT, or \[ADDRESS\]:PORT for IPv6'):
        places.given(address, 2, 0)


def test_given() -> None:
    assert places.given('[::1]:80', 2, 1).host == '::1'
    with pytest.raises(UserError, match='--process_id=2: must be at least 0 and below'):
        places.given('a:80', 2, 2)
