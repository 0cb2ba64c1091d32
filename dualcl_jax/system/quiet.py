"""Silences output of other libraries that is redundant, because an error follows, or harmless."""

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from absl import logging as absl_logging

from dualcl_jax.system.errors import STORAGE, first_line

WARNINGS = (
    "coroutine 'async_serialize_from_host",
    "coroutine 'Store._get_array_metadatas' was never awaited",
    'Sharding info not provided when restoring',
    'Error writing persistent compilation cache entry',
)
"""The beginnings of warnings that are not shown."""
LIBRARIES = ('orbax', 'tensorflow_datasets')
"""Libraries that log by absl. Orbax's threads log what is raised."""

_lock = threading.Lock()
_calls = 0
_undo = contextlib.ExitStack()


def quiet() -> None:
    """Silences the libraries for the life of this process, which is that of a program."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger('asyncio').setLevel('CRITICAL')  # Orbax's threads, likewise
    logging.getLogger('matplotlib').setLevel('ERROR')  # it warns where its cache cannot be written
    logging.getLogger('jax._src.xla_bridge').addFilter(_shorten)
    _hide()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """A context for calls in a process of the user: hides the same messages, and leaves everything as it was.

    Several threads may be in it. Messages of the user's own code are shown.
    """
    global _calls
    with _lock:
        _calls += 1
        if _calls == 1:
            _undo.enter_context(_hidden())
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                _undo.close()


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    filters = {'absl': _is_of_others, 'asyncio': _is_new, 'jax._src.xla_bridge': _shorten}
    hook, before = sys.unraisablehook, list(warnings.filters)
    for name, function in filters.items():
        logging.getLogger(name).addFilter(function)
    _hide()
    ours = [found for found in warnings.filters if found not in before]
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for found in ours:  # not those that libraries add when they are imported
            with contextlib.suppress(ValueError):
                warnings.filters.remove(found)  # type: ignore[attr-defined]
        for name, function in filters.items():
            logging.getLogger(name).removeFilter(function)


def _hide() -> None:
    """Hides `WARNINGS`, and exceptions in destructors that are already reported."""
    for message in WARNINGS:
        warnings.filterwarnings('ignore', message=message)
    sys.unraisablehook = partial(_report_unraisable, sys.unraisablehook)


def _report_unraisable(report: Callable[[Any], object], unraisable: Any) -> None:
    if not _is_reported(unraisable.exc_value):
        report(unraisable)


def _is_reported(error: BaseException | None) -> bool:
    """Whether an error is reported anyway: a further failing read of a damaged checkpoint, a file on a full disk."""
    return str(error) == 'Event loop is closed' or (isinstance(error, OSError) and error.errno in STORAGE)


def _is_new(record: logging.LogRecord) -> bool:
    return not (record.exc_info and _is_reported(record.exc_info[1]))


def _is_of_others(record: logging.LogRecord) -> bool:
    return not set(LIBRARIES) & set(record.pathname.split(os.sep))


def _shorten(record: logging.LogRecord) -> bool:
    """Turns a log record with a stack trace, such as JAX's about a broken driver, into one line."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = f'warning: {record.getMessage()}: {first_line(record.exc_info[1])}', ()
        record.exc_info = record.exc_text = None
    return True
