"""State that the functions share: JAX is set up once for the process."""

import contextlib
import os
import threading
from collections.abc import Iterator

from dualcl_jax.system.private_jax import backends_started
from dualcl_jax.system.processes.start import check_numbers, start
from dualcl_jax.system.quiet import quietly

_starting = threading.Lock()
_started = threading.Event()


@contextlib.contextmanager
def using_jax(*, deterministic: bool = True) -> Iterator[None]:
    """A context for the work of a function: JAX is set up as for the commands, and other libraries are quiet.

    The set-up is done once for a process that the user started, and stays: variables of the environment for XLA and for
    the cache of compiled programs, and on CPUs that freed memory is kept. Options of XLA have no effect if JAX has used
    a device before; a note is then printed.

    Args:
      deterministic: on GPUs, whether XLA uses only kernels that give the same bits each time.

    Raises:
      UserError: JAX finds no devices, their driver fails, or JAX is set to compute other numbers.
    """
    with quietly():
        with _starting:
            if _started.is_set():
                check_numbers()
            else:
                _start(deterministic)
        yield


def _start(deterministic: bool) -> None:
    before = os.environ.get('XLA_FLAGS', '')
    used = backends_started()
    start(deterministic=deterministic, is_program=False)
    if used and os.environ.get('XLA_FLAGS', '') != before:
        print('note: JAX was already in use, without the XLA options that dualcl_jax sets; call dualcl_jax first')
    _started.set()
