"""What the messages of other libraries come to, in programs and in a process of the user."""

import errno
import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest

from dualcl_jax.system.quiet import WARNINGS, quietly


def record(name: str, message: str, path: str = 'file.py', error: BaseException | None = None) -> logging.LogRecord:
    information = None if error is None else (type(error), error, None)
    return logging.LogRecord(name, logging.ERROR, path, 1, message, None, information)


def is_shown(made: logging.LogRecord) -> bool:
    return bool(logging.getLogger(made.name).filter(made))


def test_only_repeated_messages_are_hidden(recwarn: pytest.WarningsRecorder) -> None:
    of_orbax = record('absl', 'long', os.path.join('packages', 'orbax', 'checkpoint', 'file.py'))
    full = record('asyncio', 'Task exception was never retrieved', error=OSError(errno.ENOSPC, 'full'))
    driver = record('jax._src.xla_bridge', 'broken', error=RuntimeError('no driver\nand more'))
    with quietly():
        for message in WARNINGS:
            warnings.warn(f'{message} and more', UserWarning, stacklevel=1)
        warnings.warn('of the user', UserWarning, stacklevel=1)
        assert not is_shown(of_orbax)
        assert not is_shown(full)
        assert is_shown(record('absl', 'of the user'))
        assert is_shown(record('asyncio', 'of the user', error=ValueError()))
        assert is_shown(driver)
    assert driver.getMessage() == 'warning: broken: no driver'
    assert driver.exc_info is None
    assert [str(warning.message) for warning in recwarn] == ['of the user']
    assert is_shown(of_orbax)
    assert is_shown(full)


def test_threads_that_overlap() -> None:
    before, inside, hook = list(warnings.filters), threading.Event(), sys.unraisablehook
    entered = threading.Event()

    def work() -> None:
        with quietly():
            entered.set()
            inside.wait()

    thread = threading.Thread(target=work)
    with quietly():
        thread.start()
        entered.wait()
    assert sys.unraisablehook is not hook
    inside.set()
    thread.join()
    assert (sys.unraisablehook, list(warnings.filters)) == (hook, before)


def test_errors_in_destructors() -> None:
    """An error that is reported anyway is hidden, any other is shown."""
    program = """
from dualcl_jax.system.quiet import quiet
class Raises:
    def __init__(self, error): self.error = error
    def __del__(self): raise self.error
quiet()
for error in (OSError(28, 'full'), RuntimeError('Event loop is closed'), ValueError('shown')):
    Raises(error)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == 'ValueError: shown'
    assert 'full' not in done.stderr
    assert 'Event' not in done.stderr
