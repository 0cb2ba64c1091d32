"""The processor of this machine."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The processor's model name on Linux; elsewhere its architecture."""
    about = Path('/proc/cpuinfo')
    lines = about.read_text().splitlines() if about.exists() else []
    names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    return next(names, platform.machine())


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
