"""The private interfaces of JAX that several processes need, in one place, because any version may change them.

Training in a single process needs none of them.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from dualcl_jax.system.errors import UserError

TESTED = ('0.10', '0.12')
"""First and last version of JAX with which these interfaces were tested."""

INTERFACES = {
    'jax._src.distributed': 'global_state.initialize_preemption_sync_manager',
    'jax._src.lib': '_jax.get_distributed_runtime_service',
    'jaxlib._jax': 'get_distributed_runtime_service',
    'jax._src.cloud_tpu_init': 'cloud_tpu_init',
    'jax._src.clusters.cloud_tpu_cluster': 'GceTpuCluster.get_coordinator_address',
    'jax._src.clusters.ompi_cluster': 'OmpiCluster.get_coordinator_address',
    'jax._src.clusters.slurm_cluster': 'SlurmCluster.get_coordinator_address',
    'jax._src.clusters.k8s_cluster': 'K8sCluster.get_coordinator_address',
}
"""Every module that is used, with an attribute that it must have."""


def interface(module: str) -> Any:
    """Imports a module of `INTERFACES`.

    Raises:
      UserError: this version of JAX lacks it, or its attribute.
    """
    try:
        found = owner = importlib.import_module(module)
        for name in INTERFACES[module].split('.'):
            owner = getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f'jax {importlib.metadata.version("jax")}: {error}, which several processes need; '
            f'install a version from {TESTED[0]} to {TESTED[1]}, or use one process'
        ) from error
    return found


def backends_started() -> bool:
    """Whether JAX has used a device in this process, as far as this version of JAX reports it."""
    bridge = sys.modules.get('jax._src.xla_bridge')
    are_initialized = getattr(bridge, 'backends_are_initialized', None)
    return are_initialized is not None and bool(are_initialized())


def distributed_state() -> Any:
    """JAX's record of the processes that it has joined: `client`, `service`, `process_id`, `num_processes`."""
    return interface('jax._src.distributed').global_state


def start_preemption_service() -> None:
    """Starts JAX's preemption service, which then handles SIGTERM, in a process that JAX has joined without it."""
    import jax

    jax.config.update('jax_enable_preemption_service', True)
    distributed_state().initialize_preemption_sync_manager()


@contextlib.contextmanager
def coordination_service(start: Callable[..., Any]) -> Iterator[None]:
    """A context in which JAX calls `start` to start its coordination service."""
    library = interface('jax._src.lib')._jax
    serve, library.get_distributed_runtime_service = library.get_distributed_runtime_service, start
    try:
        yield
    finally:
        library.get_distributed_runtime_service = serve


def run_coordination_service(arguments: list[Any], options: dict[str, Any]) -> Any:
    """Starts the coordination service in this process; it ends with the returned value."""
    return interface('jaxlib._jax').get_distributed_runtime_service(*arguments, **options)


CLUSTERS = {
    'Open MPI': ('jax._src.clusters.ompi_cluster', 'OmpiCluster'),
    'SLURM': ('jax._src.clusters.slurm_cluster', 'SlurmCluster'),
    'Kubernetes': ('jax._src.clusters.k8s_cluster', 'K8sCluster'),
}
"""Module and class of each scheduler."""

NAME_S = 60
"""Seconds that JAX waits for the name of process 0's host to be known, in the cases in which it waits."""

Found = tuple[str, int, int]
"""Address of the coordinator, number of processes, index of this one."""


def cluster_place(name: str) -> Found | None:
    """The place of this process according to a scheduler of `CLUSTERS`; None if JAX does not find it.

    It raises whatever JAX's class and the interface of the scheduler raise.
    """
    module, cluster = CLUSTERS[name]
    found = getattr(interface(module), cluster)
    return _place(found) if found.is_env_present() else None


def tpu_place() -> Found | None:
    """The place of this TPU VM in its slice; None for a single one. It raises what JAX's class raises."""
    interface('jax._src.cloud_tpu_init').cloud_tpu_init()
    clusters = interface('jax._src.clusters.cloud_tpu_cluster')
    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if cluster.is_env_present():
            return _place(cluster) if cluster.get_process_count() > 1 else None
    return None


def _place(cluster: Any) -> Found:
    port = os.environ.get('JAX_COORDINATOR_PORT')
    address = cluster.get_coordinator_address(timeout_secs=NAME_S, override_coordinator_port=port)
    return address, cluster.get_process_count(), cluster.get_process_id()


def kubernetes_pods() -> int | Exception:
    """The number of pods in the Job of this pod, or the exception for which it cannot be determined."""
    cluster = interface('jax._src.clusters.k8s_cluster').K8sCluster
    if importlib.util.find_spec('kubernetes') is None:
        return ImportError('the package kubernetes is not installed')
    try:
        assert cluster.is_env_present()
        return int(cluster.get_process_count())
    except Exception as error:  # whatever the Kubernetes client raises for a pod without a Job or without permissions
        return error
