"""Set-up of a process before it uses JAX: compiler flags, logging, and joining the other processes of a run."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from logging import getLogger
from math import ceil
from typing import Any

from dualcl_jax.system.errors import EXIT_RESTART, RestartError, UserError, exit_at_once, first_line
from dualcl_jax.system.files import cache_folder, can_create
from dualcl_jax.system.private_jax import coordination_service
from dualcl_jax.system.processes import heartbeat, places, rendezvous, supervisor
from dualcl_jax.system.processes.agreement import from_all, machine_id
from dualcl_jax.system.quiet import quiet
from dualcl_jax.system.versions import PACKAGES

CPU_FLAGS = (
    '--xla_cpu_use_onednn=true',
    '--xla_cpu_experimental_onednn_custom_call=true',
    '--xla_cpu_experimental_ynn_fusion_type=reduce',
    '--xla_backend_optimization_level=1',
)
"""These make XLA:CPU compute convolutions and matrix products with oneDNN. YNN, which jax 0.12 uses for most of them,
takes 1.4 to 1.8 times as long (3×3 convolutions of ResNet-18 at width 16, batch 256, float32, one core of a Xeon with
AVX-512).

Optimization level 1 instead of 3 compiles the step in 0.8 of the time (CPU time on a shared AMD EPYC). The step ran no
slower; the loss head alone took 1.1 times as long."""
CPU_FLAGS_KNOWN_TO = ((0, 12), (0, 13))
"""The range of jaxlib versions [from, below) known to accept these flags: XLA aborts on an unknown flag."""

JAX_LIMIT_S = 240.0
"""Time limit in seconds, below the time after which JAX aborts with a stack trace when it cannot join the processes."""

DEVICES_S = 600.0
"""Time limit in seconds for the devices of joined processes. JAX itself waits 300 s for those of the others."""
BUSY = re.compile(
    r'already in use|busy|unavailable|not.ready|time[d_ ]*out|out.of.memory|resource.exhausted|aborted|deadline',
    re.IGNORECASE,
)
"""How JAX reports devices that another process uses, or that do not answer for a while."""
NO_DEVICE = re.compile(r'\bno\b[\w ]*(device|platform)', re.IGNORECASE)
"""How JAX reports that a machine has no such devices."""
UNKNOWN_PLATFORM = 'not in the list of known backends'
"""How JAX reports a wrong name in JAX_PLATFORMS."""

GPU_FLAGS = ('--xla_gpu_exclude_nondeterministic_ops=true',)
"""With these flags, a program on GPUs gives the same bits each time it runs. A program fails to compile if one of its
operations has no such implementation; a training step has no such operation.

On an H200 with jax 0.11.2, two runs of 60 steps of ResNet-18, or of 24 steps of ResNet-50, in bfloat16, each compiled
anew, end in the same state, as does a run that is killed and resumed. Without the flags, two runs differ."""
GPU_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin', 'jax_rocm60_plugin', 'jax_rocm7_plugin')
"""Packages of which JAX needs one to find a GPU."""

MALLOC_OPTIONS = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_THRESHOLD': (-3, 2**31 - 1), 'M_TRIM_THRESHOLD': (-1, 2**31 - 1)}
"""Number and value of the options of glibc's `mallopt` that make it keep and reuse freed memory."""

NUMBERS = {
    'jax_enable_x64': (False, 'losses and features are computed in 32 bits'),
    'jax_threefry_partitionable': (True, 'other random numbers would be drawn'),
}
"""Options of JAX that change the results of a run: the value that they must have, and why."""
TRUE = ('y', 'yes', 't', 'true', 'on', '1')
"""The values with which a variable of the environment turns such an option on."""

_token = ''


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    facts: rendezvous.Facts | None = None,
    timeout_s: float = 50.0,
    deterministic: bool = True,
    *,
    several: bool = True,
    is_program: bool = True,
) -> None:
    """Sets up JAX, and keeps the secret of the run for `token`. Call it once, before anything uses a device.

    Args:
      coordinator_address: HOST:PORT of process 0; None for one process, or where a scheduler provides it (`places`).
      num_processes: how many processes run the same command.
      process_id: the index of this process.
      facts: what must be equal in all processes besides the versions, such as the fields of the config.
      timeout_s: how long to wait for the others.
      deterministic: on GPUs, whether XLA uses only kernels that give the same bits each time.
      several: whether the program runs in several processes.
      is_program: whether this process is that of a program of ours, in which other libraries are silenced.

    Raises:
      UserError: a process is different, the flags contradict each other, or JAX is set to compute other numbers.
      RestartError: a process is missing or late.
    """
    global _token
    if is_program:
        quiet()
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # XLA's own errors are also raised
    cpu_only = _cpu_only()
    if cpu_only:
        _set_cpu_flags()
        _keep_freed_memory()
    if deterministic and any(importlib.util.find_spec(plugin) for plugin in GPU_PLUGINS):
        _add_xla_flags(GPU_FLAGS)
    chosen = 'JAX_COMPILATION_CACHE_DIR' in os.environ
    _use_compilation_cache(platform.node() if cpu_only else 'compiled')
    check_numbers()
    if (coordinator_address, num_processes, process_id) == (None, None, None):
        place = places.detect(several=several)
    elif coordinator_address is None or num_processes is None or process_id is None:
        raise UserError('--coordinator_address, --num_processes and --process_id: give all three, or none')
    else:
        place = places.given(coordinator_address, num_processes, process_id)
    if place is None:
        _start_devices()
        return
    versions = {f'version of {name}': importlib.metadata.version(name) for name in PACKAGES}
    _token = rendezvous.meet(place, versions | dict(facts or {}), timeout_s)
    _join(place, timeout_s)
    heartbeat.connect(token(), timeout_s)
    with heartbeat.sharing_errors():
        _start_joined_devices()
        _check_compilation_cache(len(set(from_all('machines', machine_id()))), chosen=chosen)


def check_numbers() -> None:
    """Raises UserError if an option of JAX has been changed from its value in `NUMBERS`."""
    import jax

    for option, (needed, why) in NUMBERS.items():
        value = getattr(jax.config, option)
        if value == needed:
            continue
        variable = option.upper()
        given = os.environ.get(variable)
        if given is not None and (given.lower() in TRUE) == value:
            raise UserError(f'{variable}={given}: {why}; unset it')
        raise UserError(f"jax.config.{option}={value}: {why}; call jax.config.update('{option}', {needed})")


def token() -> str:
    """The secret that the processes of this run share; empty for a single process."""
    return _token


def _join(place: places.Place, timeout_s: float) -> None:
    """Joins the processes by JAX. The supervisor, not process 0 itself, runs JAX's coordination service.

    Raises:
      RestartError: they were not joined in time, although all of them answered the rendezvous just before.
    """
    import jax

    devices = places.local_devices()
    problem = f'{place.problem}: the processes could not be joined'
    limit_s = min(timeout_s, JAX_LIMIT_S)
    late = f'error: {problem} within {limit_s:g} s; run the same command again'
    _bypass_proxy(place.host)
    jax.config.update('jax_enable_preemption_service', False)  # until the first step, see `StopSignal`
    try:
        with (
            _ended_after(limit_s, exit_at_once, EXIT_RESTART, late),
            coordination_service(partial(supervisor.start, token(), supervisor.bind_host(place.host))),
        ):
            jax.distributed.initialize(
                *place,
                local_device_ids=devices,
                cluster_detection_method='deactivate',  # it would choose a device by the index of this process
                initialization_timeout=ceil(limit_s) + 10,
            )
    except (RuntimeError, ValueError) as error:
        raise RestartError(f'{problem} ({first_line(error)})') from error


@contextlib.contextmanager
def _ended_after(seconds: float, end: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """A context for calls that cannot be interrupted: calls `end`, in another thread, if they take longer."""
    timer = threading.Timer(seconds, end, arguments)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _bypass_proxy(host: str) -> None:
    """Makes gRPC bypass a configured proxy for a host, and suppresses JAX's warning about the proxy."""
    getLogger('jax._src.distributed').addFilter(lambda record: 'proxy variable' not in record.getMessage())
    if not any(name in os.environ for name in ('grpc_proxy', 'https_proxy', 'http_proxy')):
        return
    given = os.environ.get('no_grpc_proxy') or os.environ.get('no_proxy') or ''  # noqa: SIM112 - gRPC's own name
    os.environ['no_grpc_proxy'] = ','.join(filter(None, [given, host]))  # noqa: SIM112


def _start_joined_devices() -> None:
    """Initialises the devices of a process that JAX has joined; it exits with status 75 after `DEVICES_S`."""
    late = RestartError(f'the devices of this process did not start within {DEVICES_S:g} s; run the same command again')
    with _ended_after(DEVICES_S, heartbeat.leave, late):
        _start_devices(joined=True)


def _start_devices(*, joined: bool = False) -> None:
    """Initialises the devices of JAX.

    Args:
      joined: whether JAX has joined this process with others: a failure is then that of a machine, or of another one.

    Raises:
      UserError: there are none, or their driver fails.
      RestartError: they are in use, or do not answer for a while.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        chosen = os.environ.get('JAX_PLATFORMS')
        reason = first_line(error) if str(error) else 'no such device'
        absent = not str(error) or UNKNOWN_PLATFORM in reason
        if not absent and (joined or (BUSY.search(reason) and not NO_DEVICE.search(reason))):
            raise RestartError(
                f'JAX cannot use the devices of this machine now ({reason}); run the same command again'
            ) from error
        raise UserError(
            f'JAX_PLATFORMS={chosen}: JAX cannot use it ({reason}); correct it, or unset it'
            if chosen
            else f'JAX cannot use the devices of this machine ({reason}); repair their driver, or set JAX_PLATFORMS=cpu'
        ) from error


def _cpu_only() -> bool:
    """Whether JAX will find no accelerator, as far as this can be determined without starting it."""
    accelerator = importlib.util.find_spec('jax_plugins') or (importlib.util.find_spec('libtpu') and places.has_tpu())
    return os.environ.get('JAX_PLATFORMS') == 'cpu' or not accelerator


def _set_cpu_flags() -> None:
    """Adds `CPU_FLAGS` to XLA_FLAGS.

    Skipped if the user names a compilation cache: jaxlib 0.12 fails to store programs that call oneDNN.
    """
    version = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:2])
    cached = 'JAX_COMPILATION_CACHE_DIR' in os.environ
    if not cached and CPU_FLAGS_KNOWN_TO[0] <= version < CPU_FLAGS_KNOWN_TO[1]:
        _add_xla_flags(CPU_FLAGS)


def _add_xla_flags(flags: Sequence[str]) -> None:
    """Prepends flags to the user's own in XLA_FLAGS, except those that the user has set."""
    given = os.environ.get('XLA_FLAGS', '').split()
    names = {flag.partition('=')[0] for flag in given}
    os.environ['XLA_FLAGS'] = ' '.join([*(flag for flag in flags if flag.partition('=')[0] not in names), *given])


def _use_compilation_cache(name: str) -> None:
    """Makes JAX keep compiled programs for the next start, unless the user configured this otherwise.

    Hosts may share the cache folder, but not programs for CPUs, whose instruction sets may differ. On CPUs, programs
    that call oneDNN, such as the step, are compiled each time: jaxlib 0.12 cannot store them.
    """
    folder = cache_folder() / name
    if can_create(folder):
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')


def may_cache_programs(machines: int, backend: str, *, chosen: bool) -> bool:
    """Whether JAX may keep compiled programs for the next start.

    On GPUs of several machines it may only if the user chose a folder, which they must share. JAX writes the cache in
    process 0 alone. With a cache per machine, process 0 would find a program at the next start that the others compile,
    and they would wait forever for its share of the measurements by which XLA chooses kernels.

    Args:
      machines: the number of machines of the run.
      backend: 'cpu', 'gpu' or 'tpu'.
      chosen: whether the user chose the folder.
    """
    return machines == 1 or backend != 'gpu' or chosen


def _check_compilation_cache(machines: int, *, chosen: bool) -> None:
    """Turns the cache of compiled programs off unless JAX `may_cache_programs`. Call it before anything is compiled."""
    import jax

    if not may_cache_programs(machines, jax.default_backend(), chosen=chosen):
        jax.config.update('jax_compilation_cache_dir', None)


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the life of the process.

    XLA:CPU allocates the temporaries of a step anew in each step. If their memory went back to the kernel in between,
    its pages would fault and be zeroed one by one, which takes half of the time of a convolution's gradient. Other C
    libraries lack this option.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is not None:
        for option, value in MALLOC_OPTIONS.values():
            mallopt(option, value)
