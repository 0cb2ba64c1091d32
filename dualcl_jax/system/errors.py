"""The one exception for what a user can mend, and how entry points end."""

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
"""What a folder that is full, read-only, gone or broken answers."""


class UserError(Exception):
    """A mistake or condition that the user can mend: its text names the field or path and the remedy."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def ending(error: BaseException) -> tuple[int, str] | None:
    """The exit status of a program that an exception ends, and what it says on stderr; None for faults of ours.

    A `UserError` is at most three lines, status 2; so is a folder that is full, read-only, gone or broken. Ctrl-C where
    there is nothing to save is a line, status 130.
    """
    if isinstance(error, OSError) and error.errno in STORAGE:
        remedy = 'make room there' if error.errno in FULL else 'mend that'
        error = UserError(f'{error.filename or "a file"}: {error.strerror}; {remedy}, and run the same command again')
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, 'error: ' + '\n'.join(str(error).strip().splitlines()[:3])
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, 'interrupted; run the same command to go on from the last checkpoint'
    return None


def exits_cleanly(main: Callable[[], int]) -> Callable[[], int]:
    """Wraps an entry point, which then ends as `ending` says, or with a traceback."""

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
