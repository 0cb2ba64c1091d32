"""The private interfaces of JAX that several processes need, in one place: they may change with any version.

Training in a single process needs none of them.
"""

import contextlib
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from typing import Any

from dualcl_jax.system.errors import UserError

TESTED = ('0.10', '0.12')
"""First and last version of JAX with which these interfaces were tested."""

INTERFACES = {
    'jax._src.distributed': 'global_state',
    'jax._src.lib': '_jax.get_distributed_runtime_service',
    'jaxlib._jax': 'get_distributed_runtime_service',
    'jax._src.cloud_tpu_init': 'cloud_tpu_init',
    'jax._src.clusters.cloud_tpu_cluster': 'GceTpuCluster.get_coordinator_address',
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
    """Whether JAX has used a device in this process, as far as this version of JAX tells."""
    bridge = sys.modules.get('jax._src.xla_bridge')
    tells = getattr(bridge, 'backends_are_initialized', None)
    return tells is not None and bool(tells())


def distributed_state() -> Any:
    """JAX's record of the processes that it has joined: `client`, `service`, `process_id`, `num_processes`."""
    return interface('jax._src.distributed').global_state


@contextlib.contextmanager
def coordination_service(start: Callable[..., Any]) -> Iterator[None]:
    """A context in which JAX calls `start` for its coordination service."""
    library = interface('jax._src.lib')._jax
    serve, library.get_distributed_runtime_service = library.get_distributed_runtime_service, start
    try:
        yield
    finally:
        library.get_distributed_runtime_service = serve


def run_coordination_service(arguments: list[Any], options: dict[str, Any]) -> Any:
    """Starts the coordination service in this process; it ends with the returned value."""
    return interface('jaxlib._jax').get_distributed_runtime_service(*arguments, **options)


def tpu_pod() -> tuple[str, int, int] | None:
    """Coordinator's address, number of processes and index of this TPU VM in its slice; None for a single one."""
    interface('jax._src.cloud_tpu_init').cloud_tpu_init()
    clusters = interface('jax._src.clusters.cloud_tpu_cluster')
    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if cluster.is_env_present() and cluster.get_process_count() > 1:
            address = cluster.get_coordinator_address(timeout_secs=60, override_coordinator_port=None)
            return address, cluster.get_process_count(), cluster.get_process_id()
    return None
