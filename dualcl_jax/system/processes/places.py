"""The place of a process in its run and the GPUs that it uses, as determined by what started the process.

`detect` asks JAX's own classes for TPU, SLURM, Open MPI and Kubernetes. It does so only where the environment says that
this process is one of several, so that a shell in an allocation is a single process.
"""

import glob
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from dualcl_jax.system.errors import RestartError, UserError, first_line
from dualcl_jax.system.private_jax import Found, cluster_place, kubernetes_pods, tpu_place

SCHEDULERS = ('KUBERNETES_SERVICE_HOST', 'SLURM_JOB_ID', 'OMPI_COMM_WORLD_SIZE', 'RAY_JOB_ID', 'SKYPILOT_TASK_ID')
"""Variables of schedulers that restart a run, and may start its processes minutes apart."""
VISIBLE = ('CUDA_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES')
"""Variables that limit the GPUs that a process sees."""
GPU_FILES = '/dev/nvidia[0-9]*'


class Place(NamedTuple):
    """The place of one process in a run: HOST:PORT of process 0, the number of processes, the index of this one."""

    address: str
    processes: int
    process: int

    @property
    def host(self) -> str:
        """HOST of the address, an IPv6 address without its brackets."""
        return self.address.rpartition(':')[0].strip('[]')

    @property
    def port(self) -> int:
        return int(self.address.rpartition(':')[2])

    @property
    def problem(self) -> str:
        """The beginning of a message about the address."""
        return f'--coordinator_address={self.address}'


def given(address: str, processes: int, process: int) -> Place:
    """The place that the flags describe.

    Raises:
      UserError: a flag is invalid.
    """
    if not 0 <= process < processes:
        raise UserError(f'--process_id={process}: must be at least 0 and below --num_processes={processes}')
    host, _, port = address.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536 or (':' in host and host[0] + host[-1] != '[]'):
        raise UserError(f'--coordinator_address={address}: must be HOST:PORT, or [ADDRESS]:PORT for IPv6')
    return Place(address, processes, process)


def scheduled() -> bool:
    """Whether a scheduler started this process: after a restart, a port may then be free or a name known."""
    return any(name in os.environ for name in SCHEDULERS)


def detect(*, several: bool = True) -> Place | None:
    """The place according to TPU, Open MPI, SLURM or Kubernetes; None for a single process.

    Args:
      several: whether the program runs in several processes; one that does not joins others only on a TPU slice.

    Raises:
      UserError: this process is one of several that have no way to find each other.
      RestartError: the scheduler does not answer, or cannot name the host of process 0 yet.
    """
    environment = os.environ
    if environment.get('JAX_PLATFORMS', 'tpu').startswith('tpu') and has_tpu():
        return _asked('TPU slice', tpu_place, required=False)
    if not several:
        return None
    if _count(environment, 'OMPI_COMM_WORLD_SIZE') > 1:
        return _in_cluster('Open MPI')
    tasks = 'SLURM_STEP_NUM_TASKS' if 'SLURM_STEP_NUM_TASKS' in environment else 'SLURM_NTASKS'
    if _count(environment, tasks) > 1 and 'SLURM_STEP_NODELIST' in environment:
        return _in_cluster('SLURM')
    return _kubernetes() if 'KUBERNETES_SERVICE_HOST' in environment else None


def has_tpu() -> bool:
    """Whether this machine has a TPU, regardless of the installed packages."""
    return any(os.path.exists(path) for path in ('/dev/accel0', '/dev/vfio/0'))


def _count(environment: Mapping[str, str], name: str) -> int:
    """A number in the environment, 0 if there is none."""
    found = environment.get(name, '')
    return int(found) if found.isdecimal() else 0


def _in_cluster(name: str) -> Place | None:
    """The place according to a scheduler of `private_jax.CLUSTERS`; None for a single process."""
    return _asked(name, partial(cluster_place, name), required=True)


def _asked(name: str, find: Callable[[], Found | None], *, required: bool) -> Place | None:
    """The place according to one of JAX's classes; None for a single process.

    Args:
      name: the name of what started the process, for messages.
      find: asks the class; None if it finds no place.
      required: whether it is an error if it finds none.
    """
    flags = 'give --coordinator_address, --num_processes and --process_id'
    try:
        found = find()
    except UserError:
        raise
    except OSError as error:
        raise RestartError(f'{name}: {first_line(error)}; run the same command again') from error
    except Exception as error:  # JAX's classes raise what the interfaces of their schedulers raise
        if 'Failed to recognize coordinator' in str(error) or 'Retry failed' in str(error):
            raise RestartError(f'{name}: {first_line(error)}; run the same command again') from error
        raise UserError(f'{name}: the processes cannot find each other ({first_line(error)}); {flags}') from error
    if found is None and required:
        raise UserError(f'{name}: JAX does not recognise it, so the processes cannot find each other; {flags}')
    return Place(*found) if found and found[1] > 1 else None


def _kubernetes() -> Place | None:
    """The place of this pod in its Job. Several pods that cannot find each other must not train apart."""
    pods = kubernetes_pods()
    remedy = (
        'give --coordinator_address, --num_processes and --process_id (experiments/launch/jobset.yaml), '
        "or pip install 'dualcl-jax[k8s]' and let the pod read its Job"
    )
    unknown = pods if isinstance(pods, Exception) else None
    if pods == 1 or (unknown and 'JOB_COMPLETION_INDEX' not in os.environ):  # a single pod, as far as can be determined
        return None
    if unknown:
        raise UserError(
            f'Kubernetes: this pod cannot determine the number of pods ({first_line(unknown)})\n{remedy}'
        ) from unknown
    if 'JOB_COMPLETION_INDEX' not in os.environ:
        raise UserError(f'Kubernetes: {pods} pods without an index; set completionMode: Indexed, and {remedy}')
    return _in_cluster('Kubernetes')


def local_devices() -> list[int] | None:
    """Indices, among the GPUs that this process sees, of those that it uses; None if there are none.

    A process uses all GPUs that it sees, unless the processes of its machine see the same GPUs, which they then share
    evenly. By default, JAX would use only the GPU with the process's index on its machine, which a task with a GPU of
    its own lacks.

    Raises:
      UserError: the processes of this machine cannot share its GPUs evenly.
    """
    listed = next((os.environ[name] for name in VISIBLE if name in os.environ), None)
    present = len(glob.glob(GPU_FILES))
    visible = present if listed is None else len(list(filter(None, listed.split(','))))
    on_node = _count(os.environ, 'SLURM_GPUS_ON_NODE') or present
    processes, index = _on_this_machine()
    if not visible:
        return None
    if processes < 2 or visible < on_node:
        return list(range(visible))
    if visible % processes:
        raise UserError(
            f'{processes} processes on this machine cannot share {visible} GPUs evenly; '
            'start one per GPU, or one per machine, for example with --ntasks-per-node of SLURM'
        )
    share = visible // processes
    return list(range(index * share, (index + 1) * share))


def _on_this_machine() -> tuple[int, int]:
    """How many processes of the run Open MPI or SLURM started on this machine, and the index of this one."""
    environment = os.environ
    if 'OMPI_COMM_WORLD_LOCAL_SIZE' in environment:
        return _count(environment, 'OMPI_COMM_WORLD_LOCAL_SIZE'), _count(environment, 'OMPI_COMM_WORLD_LOCAL_RANK')
    tasks: list[int] = []  # of each node; 4,4,3 is written as 4(x2),3
    for part in re.findall(r'(\d+)(?:\(x(\d+)\))?', environment.get('SLURM_STEP_TASKS_PER_NODE', '')):
        tasks += [int(part[0])] * int(part[1] or 1)
    node = _count(environment, 'SLURM_NODEID')
    return (tasks[node] if node < len(tasks) else 1), _count(environment, 'SLURM_LOCALID')
