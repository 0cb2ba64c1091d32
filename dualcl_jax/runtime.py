"""The process before JAX: flags of the compiler, logging, and joining the other processes of a run."""

import os
import warnings

from absl import logging

from dualcl_jax.errors import UserError


def start(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Sets JAX up. Call once, before anything touches a device.

    Args:
      coordinator_address: HOST:PORT of process 0; None for one process, or where TPU or SLURM tell.
      num_processes: how many run the same command.
      process_id: which of them this is.

    Raises:
      UserError: the processes cannot be joined, or the flags do not fit together.
    """
    logging.set_verbosity(logging.ERROR)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    warnings.filterwarnings('ignore', message='Sharding info not provided when restoring')
    import jax

    given = [value is not None for value in (coordinator_address, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError('--coordinator_address, --num_processes and --process_id: give all three, or none')
    if not any(given):
        return
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise UserError(f'--process_id={process_id}: must be from 0 to --num_processes={num_processes} less 1')
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'--coordinator_address={coordinator_address}: the processes could not be joined '
            f'({str(error).splitlines()[0]})'
        ) from error
