"""The process before JAX: flags of the compiler, logging, and joining the other processes of a run."""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from logging import getLogger
from typing import Any

from absl import logging

from dualcl_jax import hosts, keeper
from dualcl_jax.errors import STORAGE, UserError

ALIKE = ('dualcl-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
"""Packages whose versions must be the same in every process."""

CPU_FLAGS = (
    '--xla_cpu_use_onednn=true',
    '--xla_cpu_experimental_onednn_custom_call=true',
)
"""Convolutions and matrix products of XLA:CPU by oneDNN, which pays for bfloat16: the forward pass of ResNet-18 (width
16, batch 256) took 0.13 s of CPU time with them and 0.34 s without, on a busy machine (jax 0.12)."""
CPU_FLAGS_KNOWN_TO = ((0, 12), (0, 13))
"""The jaxlib versions, from and below, that were seen to take these flags: XLA aborts at one that it does not know."""


def start(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    facts: hosts.Facts | None = None,
    timeout_s: float = 60.0,
) -> None:
    """Sets JAX up. Call once, before anything touches a device.

    Args:
      coordinator_address: HOST:PORT of process 0; None for one process, or where TPU or SLURM tell.
      num_processes: how many run the same command.
      process_id: which of them this is.
      facts: what every process must have alike besides the versions, such as the fields of its config.
      timeout_s: how long to wait for the others.

    Raises:
      UserError: a process is missing, late or different, or the flags do not fit together.
    """
    logging.set_verbosity(logging.FATAL)  # Orbax logs at length in its threads what it raises, and we tell, in a line
    getLogger('asyncio').setLevel('CRITICAL')  # likewise
    warnings.filterwarnings('ignore', message="coroutine 'async_serialize_from_host")
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    warnings.filterwarnings('ignore', message='Sharding info not provided when restoring')
    sys.unraisablehook = partial(_report_unraisable, sys.unraisablehook)
    _set_cpu_flags()
    import jax

    if (coordinator_address, num_processes, process_id) == (None, None, None):
        place = hosts.detect()
    elif coordinator_address is None or num_processes is None or process_id is None:
        raise UserError('--coordinator_address, --num_processes and --process_id: give all three, or none')
    elif not 0 <= process_id < num_processes:
        raise UserError(f'--process_id={process_id}: must be from 0 to --num_processes={num_processes} less 1')
    else:
        place = hosts.Place(coordinator_address, num_processes, process_id)
    if place is None:
        return
    versions = {f'version of {name}': importlib.metadata.version(name) for name in ALIKE}
    hosts.roll_call(place, versions | dict(facts or {}), timeout_s)
    try:
        with _kept_apart():
            jax.distributed.initialize(*place)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'--coordinator_address={place.address}: the processes could not be joined ({str(error).splitlines()[0]})'
        ) from error


@contextlib.contextmanager
def _kept_apart() -> Iterator[None]:
    """Within, process 0 does not serve the others itself: the keeper does."""
    from jax._src.lib import _jax

    serve, _jax.get_distributed_runtime_service = _jax.get_distributed_runtime_service, keeper.start
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = serve


def _set_cpu_flags() -> None:
    """Adds `CPU_FLAGS` to XLA_FLAGS, before what the user set there, where only a CPU can be used.

    Not beside a persistent compilation cache: jaxlib 0.12 fails to store programs that call oneDNN.
    """
    version = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:2])
    accelerator = any(importlib.util.find_spec(name) for name in ('libtpu', 'jax_plugins'))
    cpu_only = os.environ.get('JAX_PLATFORMS') == 'cpu' or not accelerator
    cached = 'JAX_COMPILATION_CACHE_DIR' in os.environ
    if cpu_only and not cached and CPU_FLAGS_KNOWN_TO[0] <= version < CPU_FLAGS_KNOWN_TO[1]:
        given = os.environ.get('XLA_FLAGS', '')
        os.environ['XLA_FLAGS'] = ' '.join([*(flag for flag in CPU_FLAGS if flag not in given), given]).strip()


def _report_unraisable(report: Callable[[Any], object], unraisable: Any) -> None:
    """Hides what is told already: other reads of a damaged checkpoint that fail, files of a full disk at their end."""
    error = unraisable.exc_value
    told = str(error) == 'Event loop is closed' or (isinstance(error, OSError) and error.errno in STORAGE)
    if not told:
        report(unraisable)
