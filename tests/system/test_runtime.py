"""Set-up of a process before it uses JAX: the compiler flags."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys

import jax
import pytest

from dualcl_jax.system.errors import UserError
from dualcl_jax.system.processes import start


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch):
    """XLA_FLAGS after a start with a given jaxlib, importable `plugins` and environment variables."""

    def run(jaxlib: str = '0.12.0', plugins: tuple[str, ...] = (), tpu: bool = False, **variables: str) -> str:
        caching = 'JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
        for name in ('XLA_FLAGS', 'JAX_PLATFORMS', *caching):
            monkeypatch.setenv(name, '')  # so that changes by start() are undone
            monkeypatch.delenv(name)
        for name, value in ({'XLA_FLAGS': '--xla_own=1'} | variables).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(importlib.metadata, 'version', lambda name: jaxlib)
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name if name in plugins else None)
        monkeypatch.setattr(start.places, 'has_tpu', lambda: tpu)
        monkeypatch.setattr(start, 'quiet', lambda: None)
        monkeypatch.setattr(start, '_start_devices', lambda: None)  # XLA aborts on a flag that it does not know
        start.start()
        return start.os.environ['XLA_FLAGS']

    return run


def test_flags_come_before_the_users(flags) -> None:
    assert flags() == ' '.join([*start.CPU_FLAGS, '--xla_own=1'])


def test_a_flag_the_user_set_stays(flags) -> None:
    own = start.CPU_FLAGS[0]
    assert flags(XLA_FLAGS=own).split() == [*start.CPU_FLAGS[1:], own]


def test_cpu_chosen_beside_an_accelerator(flags) -> None:
    assert flags(plugins=('libtpu',), tpu=True, JAX_PLATFORMS='cpu').startswith(start.CPU_FLAGS)


def test_libtpu_without_a_tpu(flags) -> None:
    """libtpu may be installed only to compile for TPUs elsewhere."""
    assert flags(plugins=('libtpu',)).startswith(start.CPU_FLAGS)


def test_compiled_programs_are_kept(flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user configured this otherwise; programs for CPUs are kept per host."""
    monkeypatch.setenv('XDG_CACHE_HOME', 'home')
    flags()
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == os.path.join('home', 'dualcl_jax', platform.node())
    flags(plugins=('jax_plugins',))
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == os.path.join('home', 'dualcl_jax', 'compiled')
    flags(JAX_COMPILATION_CACHE_DIR='own')
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == 'own'


@pytest.mark.parametrize(
    ('machines', 'backend', 'chosen', 'kept'),
    [
        (1, 'gpu', False, True),
        (2, 'gpu', False, False),
        (2, 'gpu', True, True),
        (2, 'cpu', False, True),
        (2, 'tpu', False, True),
    ],
)
def test_compiled_programs_of_several_machines(
    monkeypatch: pytest.MonkeyPatch, machines: int, backend: str, chosen: bool, kept: bool
) -> None:
    """On GPUs the processes would wait for each other if only process 0, which writes the cache, found a program."""
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    before = jax.config.jax_compilation_cache_dir
    assert before
    try:
        start._check_compilation_cache(machines, chosen=chosen)
        assert jax.config.jax_compilation_cache_dir == (before if kept else None)
    finally:
        jax.config.update('jax_compilation_cache_dir', before)


@pytest.mark.parametrize(
    'machine',
    [
        {'jaxlib': '0.10.2'},
        {'jaxlib': '0.13.0'},
        {'plugins': ('libtpu',), 'tpu': True},
        {'plugins': ('jax_plugins',)},
        {'JAX_COMPILATION_CACHE_DIR': 'cache'},
    ],
)
def test_left_alone(flags, machine: dict) -> None:
    assert flags(**machine) == '--xla_own=1'


@pytest.mark.parametrize(
    ('option', 'value', 'variable', 'message'),
    [
        ('jax_enable_x64', True, '1', '^JAX_ENABLE_X64=1: .*; unset it$'),
        ('jax_enable_x64', True, None, r'^jax.config.jax_enable_x64=True: .*; call jax.config.update\(.*, False\)$'),
        ('jax_enable_x64', True, 'off', '^jax.config.jax_enable_x64=True'),
        ('jax_threefry_partitionable', False, '0', '^JAX_THREEFRY_PARTITIONABLE=0: .*; unset it$'),
        ('jax_threefry_partitionable', False, None, r'^jax.config.jax_threefry_partitionable=False: .*, True\)$'),
    ],
)
def test_options_that_change_the_numbers(
    monkeypatch: pytest.MonkeyPatch, flags, option: str, value: bool, variable: str | None, message: str
) -> None:
    if variable is not None:
        monkeypatch.setenv(option.upper(), variable)
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        with pytest.raises(UserError, match=message):
            flags()
    finally:
        jax.config.update(option, before)
    flags()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'mallopt'), reason='no glibc')
def test_freed_memory_is_used_again() -> None:
    """The second large array causes no page faults, while the first had one for every 4 KiB."""
    program = """
import resource
import numpy as np
from dualcl_jax.system.processes import start
start.start()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, '-c', program], env=environment, check=True, capture_output=True, text=True)
    first, second = map(int, done.stdout.split())
    assert second < first / 10
