"""Output that cannot stop a program: standard streams that are closed, full, gone, or of another encoding."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

STREAMS = ('stdout', 'stderr')


class LenientStream:
    """A text stream whose writes never fail. After a failure, its file descriptor leads to the null device.

    Args:
      stream: what to write to.

    Attributes:
      failure: why output was lost; None if nothing was.
    """

    def __init__(self, stream: 'TextIO | LenientStream') -> None:
        self._stream: TextIO = stream._stream if isinstance(stream, LenientStream) else stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = self.failure or error
        with contextlib.suppress(OSError, ValueError):  # without a descriptor there is nothing to redirect
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lenient_output() -> Iterator[list[OSError]]:
    """A context in which writing to standard output and standard error never fails.

    A closed stream discards its text, and characters that an encoding lacks are written as escapes. Yields a list that
    holds, after the context, the error by which standard output lost text, if any. Contexts may be nested: the inner
    one records only its own losses.
    """
    _reserve_descriptors()
    before = {name: getattr(sys, name) for name in STREAMS}
    lost: list[OSError] = []
    streams = {name: LenientStream(before[name] or open(os.devnull, 'w')) for name in STREAMS}  # noqa: SIM115
    for name, stream in streams.items():
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
        setattr(sys, name, stream)
    try:
        yield lost
    finally:
        for name, stream in streams.items():
            stream.flush()
            setattr(sys, name, before[name])
        failure = streams['stdout'].failure
        if failure is not None:
            lost.append(failure)


def _reserve_descriptors() -> None:
    """Opens the null device for closed standard streams; otherwise the next file opened would receive their output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
