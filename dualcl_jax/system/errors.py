"""The exception for everything a user can fix, and the exit statuses of the programs."""

import contextlib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from dualcl_jax.system.terminal import lenient_output

EXIT_USER_ERROR = 2
EXIT_RESTART = 75  # run the same command again
EXIT_INTERRUPTED = 130  # a shell's 128 + SIGINT

FULL = (errno.ENOSPC, errno.EDQUOT)
AWAY = (
    errno.ESTALE, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET,
)  # fmt: skip
"""Error numbers of storage that is unavailable, or failed temporarily."""
EXHAUSTED = (errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Error numbers of a machine that lacks memory, open files or the like at the moment."""
STORAGE = (
    *FULL, *AWAY, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip
"""Error numbers of a folder that is full, read-only, missing, broken or unavailable."""


REMOTE = ('ClientConnectionError', 'MaxRetryError', 'TransportError')
"""Names of the exceptions that clients of remote services (aiohttp, urllib3, google-auth) raise without a network."""


class UserError(Exception):
    """A mistake or condition that the user can fix; the message names the field or path and the remedy."""


class RestartError(UserError):
    """A condition that running the same command again resolves, such as a lost process or unavailable storage."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def listed(first: Iterable[str], count: int, *, separator: str = ', ') -> str:
    """Lists the first of `count` names, and how many more there are.

    Example:
      >>> listed(['a', 'b'], 5)
      'a, b and 3 more'
    """
    names = list(first)
    return separator.join(names) + (f' and {count - len(names):,} more' if count > len(names) else '')


def is_away(error: BaseException | None) -> bool:
    """Whether storage or a remote service that is unavailable, or failed temporarily, caused an exception.

    Only explicit causes count: an error that was raised while another was handled is often a mistake of the user.
    """
    return any(_says_away(cause) for cause in _causes(error, implicit=False))


def _says_away(error: BaseException) -> bool:
    """Whether an exception itself, without its causes, reports that storage or a remote service is unavailable."""
    code = getattr(error, 'code', None)  # of the HTTP errors of remote stores
    return (
        isinstance(error, RestartError | ConnectionError | TimeoutError)
        or (isinstance(error, OSError) and error.errno in AWAY)
        or (isinstance(code, int) and (code == 429 or code >= 500))
        or any(kind.__name__ in REMOTE for kind in type(error).__mro__)
    )


TEMPORARY = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'RESOURCE_EXHAUSTED', 'ABORTED', 'CANCELLED')
REFUSED = ('PERMISSION_DENIED', 'UNAUTHENTICATED')
"""Statuses with which messages of tensorstore and XLA begin."""


def is_temporary(error: BaseException | None) -> bool:
    """Whether a read or a write failed for a while: by its storage, or by the memory or limits of this machine.

    Unlike `is_away`, it takes the number of an error from its message, too, and follows implicit causes: libraries that
    read files report the error of the system in these ways. A full disk is no such failure, although tensorstore
    reports it as RESOURCE_EXHAUSTED.
    """
    return is_away(error) or any(
        isinstance(cause, MemoryError)
        or _os_error(cause) in (*AWAY, *EXHAUSTED)
        or (_os_error(cause) not in FULL and str(cause).partition(':')[0] in TEMPORARY)
        for cause in _causes(error, implicit=True)
    )


def is_refused(error: BaseException | None) -> bool:
    """Whether a read failed for lack of permission."""
    return any(
        _os_error(cause) in (errno.EACCES, errno.EPERM) or str(cause).partition(':')[0] in REFUSED
        for cause in _causes(error, implicit=True)
    )


def reason_of(error: BaseException, *, typed: bool = False) -> str:
    """The reason of an exception in one line: that of the system, or else the first 200 characters of its message.

    Args:
      error: the exception.
      typed: whether the name of its type precedes its message.

    Example:
      >>> reason_of(OSError(28, 'No space left on device', 'file')), reason_of(OSError('no connection'))
      ('No space left on device', 'no connection')
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = _os_error(error)
    if number:
        return os.strerror(number)
    line = first_line(error)[:200]
    return f'{type(error).__name__}: {line}' if typed and str(error).strip() else line


def _os_error(error: BaseException) -> int | None:
    """The number of the system's error that an exception reports; tensorstore has it in its message alone."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    return int(code[1]) if code else None


def _causes(error: BaseException | None, *, implicit: bool) -> Iterator[BaseException]:
    """An exception and those that led to it; with `implicit` also those during whose handling it was raised."""
    while error is not None:
        yield error
        follows = implicit and not error.__suppress_context__
        error = error.__cause__ or (error.__context__ if follows else None)


def ending(error: BaseException) -> tuple[int, str] | None:
    """The exit status and the stderr message for an exception that ends a program; None for a bug in this package.

    A `UserError`, or a folder that is full, read-only or missing, gives at most three lines and status 2. A
    `RestartError`, or any error caused by storage or a remote service that is unavailable, gives status 75. Ctrl-C with
    nothing to save gives one line and status 130.
    """
    status = EXIT_RESTART if is_away(error) else EXIT_USER_ERROR
    if isinstance(error, OSError) and error.errno in STORAGE:
        remedy = 'free some space there' if error.errno in FULL else 'fix that'
        error = UserError(f'{error.filename or "a file"}: {error.strerror}; {remedy}, and run the same command again')
    if isinstance(error, UserError):
        return status, 'error: ' + '\n'.join(str(error).strip().splitlines()[:3])
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, 'interrupted; run the same command to resume from the last checkpoint'
    if status == EXIT_RESTART:  # such as gcsfs's HttpError, which is no OSError
        return status, f'error: {type(error).__name__}: {first_line(error)}; run the same command again'
    return None


def exit_at_once(status: int, text: str) -> NoReturn:
    """Ends this process with a message, from any thread, whatever the others are doing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # the streams may be closed
        if sys.stdout.isatty():
            sys.stdout.write('\x1b[?25h')  # show the cursor, which a progress bar has hidden
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)
    os._exit(status)


def exits_cleanly(main: Callable[[], int]) -> Callable[[], int]:
    """Wraps an entry point so that it exits as `ending` specifies, or else with a traceback.

    Standard streams that fail do not stop it. At the end, lost output is an error, unless its reader closed the pipe.
    """

    def status() -> int:
        try:
            if sys.platform == 'win32':
                raise UserError('Windows is not supported: use Linux, macOS, or Linux in WSL 2')
            return main()
        except (Exception, KeyboardInterrupt) as error:
            found = ending(error)
            if found is None:
                raise
            print(found[1], file=sys.stderr)
            return found[0]

    @functools.wraps(main)
    def wrapped() -> int:
        with lenient_output() as lost:
            found = status()
        if found == 0 and lost and lost[0].errno != errno.EPIPE:
            print(f'error: standard output: {lost[0].strerror}; output was lost', file=sys.stderr)
            return EXIT_USER_ERROR
        return found

    return wrapped
