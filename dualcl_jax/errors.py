"""The one exception for what a user can mend, and how entry points end."""

import functools
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_STOPPED_BY_SIGNAL = 75
EXIT_INTERRUPTED = 130  # a shell's 128 + SIGINT


class UserError(Exception):
    """A mistake or condition that the user can mend: its text names the field or path and the remedy."""


def exits_cleanly(main: Callable[[], int]) -> Callable[[], int]:
    """Wraps an entry point: a `UserError` becomes at most three lines on stderr and exit status 2, no traceback.

    So does Ctrl-C where there is nothing to save, one line and status 130. In the training loop `StopSignal` takes it.
    """

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            return main()
        except UserError as error:
            lines = str(error).strip().splitlines()[:3]
            print('\n'.join(['error: ' + lines[0], *lines[1:]]), file=sys.stderr)
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            print('interrupted; run the same command to go on from the last checkpoint', file=sys.stderr)
            return EXIT_INTERRUPTED

    return wrapped
