"""State that the functions share: JAX is set up once for the process."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from dualcl_jax.system.files import cache_folder
from dualcl_jax.system.private_jax import backends_started
from dualcl_jax.system.processes.start import check_numbers, start
from dualcl_jax.system.quiet import quietly

NEVER_S = 1e9
"""Programs that take this many seconds to compile do not exist."""

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
        with _programs_kept():
            yield


def _start(deterministic: bool) -> None:
    before = os.environ.get('XLA_FLAGS', '')
    used = backends_started()
    with _interrupted_afterwards():
        start(deterministic=deterministic, is_program=False)
        import orbax.checkpoint  # noqa: F401

        _started.set()
    if used and os.environ.get('XLA_FLAGS', '') != before:
        print('note: JAX was already in use, without the XLA options that dualcl_jax sets; call dualcl_jax first')


@contextlib.contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """A context in which the first Ctrl-C takes effect at the end: Python cannot import half of a package again."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is press:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _programs_kept() -> Iterator[None]:
    """A context in which JAX keeps compiled programs for the next start, if it does so in our folder.

    It does not keep those of the user there: it warns of programs that call oneDNN, which it cannot store.
    """
    import jax

    option, folder = 'jax_persistent_cache_min_compile_time_secs', jax.config.jax_compilation_cache_dir
    if folder is None or not Path(folder).is_relative_to(cache_folder()):
        yield
        return
    jax.config.update(option, float(os.environ[option.upper()]))
    try:
        yield
    finally:
        jax.config.update(option, NEVER_S)
