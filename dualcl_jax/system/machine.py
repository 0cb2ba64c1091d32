"""The processor of this machine."""

import os
import platform
from pathlib import Path


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
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
