"""The exception for everything a user can fix, and the exit statuses of the programs."""

import errno
import functools
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_STOPPED_BY_SIGNAL = 75
EXIT_INTERRUPTED = 130  # a shell's 128 + SIGINT

FULL = (errno.ENOSPC, errno.EDQUOT)
STORAGE = (
    *FULL, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.EISDIR,
    errno.EIO,
)  # fmt: skip
"""Error numbers of a folder that is full, read-only, missing or broken."""


class UserError(Exception):
    """A mistake or condition that the user can fix; the message names the field or path and the remedy."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def ending(error: BaseException) -> tuple[int, str] | None:
    """The exit status and the stderr message of a program that an exception ends; None for errors of this package.

    A `UserError` gives at most three lines and status 2, and so does a folder that is full, read-only, missing or
    broken. Ctrl-C when there is nothing to save gives one line and status 130.
    """
    if isinstance(error, OSError) and error.errno in STORAGE:
        remedy = 'free some space there' if error.errno in FULL else 'fix that'
        error = UserError(f'{error.filename or "a file"}: {error.strerror}; {remedy}, and run the same command again')
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, 'error: ' + '\n'.join(str(error).strip().splitlines()[:3])
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, 'interrupted; run the same command to resume from the last checkpoint'
    return None


def exits_cleanly(main: Callable[[], int]) -> Callable[[], int]:
    """Wraps an entry point so that it exits as `ending` specifies, or else with a traceback."""

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            return main()
        except (UserError, OSError, KeyboardInterrupt) as error:
            found = ending(error)
            if found is None:
                raise
            print(found[1], file=sys.stderr)
            return found[0]

    return wrapped
