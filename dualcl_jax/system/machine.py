"""The processor of this machine, and the cores of it that a process may use."""

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dualcl_jax.system.processes.agreement import from_all, machine_id

CGROUPS, MEMBERSHIPS = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup')
"""Where Linux shows control groups, whose quotas limit containers and pods, and the groups of this process."""


def processor() -> str:
    """The processor's model name on Linux; elsewhere its architecture."""
    return _about_processor('model name') or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 matrices (AMX); False if Linux does not report it."""
    return 'amx_bf16' in _about_processor('flags').split()


def _about_processor(field: str) -> str:
    """The value of a field that Linux reports about the first processor; empty on other systems."""
    about = Path('/proc/cpuinfo')
    lines = about.read_text().splitlines() if about.exists() else []
    return next((line.partition(':')[2].strip() for line in lines if line.startswith(field)), '')


def available_cores() -> int:
    """How many cores this process may use, by its affinity and by the quotas of its control groups."""
    return min([len(_affinity()), *(math.ceil(quota) for quota in _quotas())])


def share_of_cores() -> int:
    """How many cores this process may use while all processes of the run on this machine use theirs.

    Processes with the same cores share them evenly. Every process must call it, once.
    """
    mine = f'{machine_id()} {sum(1 << core for core in _affinity()):x}'
    return max(1, available_cores() // from_all('cores', mine).count(mine))


def _affinity() -> set[int]:
    """The cores on which this process may run."""
    return os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else set(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """The numbers of cores to which control groups of version 2 or 1 limit this process.

    A container may see its own group as the root, so the root is always among them.
    """
    memberships: list[str] = []
    with contextlib.suppress(OSError):
        memberships = MEMBERSHIPS.read_text().splitlines()
    for _, controllers, path in (line.split(':', 2) for line in memberships):
        if controllers and 'cpu' not in controllers.split(','):
            continue
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            folder = CGROUPS / ('cpu' if controllers else '') / group.relative_to('/')
            files = ('cpu.cfs_quota_us', 'cpu.cfs_period_us') if controllers else ('cpu.max',)
            with contextlib.suppress(OSError, ValueError):  # no such file, or a group that is gone or hidden
                quota, period = ' '.join((folder / file).read_text() for file in files).split()
                if quota not in ('max', '-1'):
                    yield int(quota) / int(period)
