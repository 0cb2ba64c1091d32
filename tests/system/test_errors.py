"""Exit statuses and messages of entry points."""

import errno
import sys

import pytest

from dualcl_jax.system.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    RestartError,
    UserError,
    exits_cleanly,
    reason_of,
)


def test_user_error_is_at_most_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> int:
        raise UserError('data.path=x: not there\ncorrect it\nor leave it out\nand never more')

    assert main() == EXIT_USER_ERROR
    assert capsys.readouterr().err == 'error: data.path=x: not there\ncorrect it\nor leave it out\n'


def test_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> int:
        raise KeyboardInterrupt

    assert main() == EXIT_INTERRUPTED
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ('number', 'remedy', 'status'),
    [
        (errno.ENOSPC, 'free some space there', 2),
        (errno.EROFS, 'fix that', 2),
        (errno.EIO, 'fix that', 75),
        (errno.ESTALE, 'fix that', 75),
        (errno.ETIMEDOUT, 'fix that', 75),
    ],
)
def test_storage_is_one_line(capsys: pytest.CaptureFixture[str], number: int, remedy: str, status: int) -> None:
    @exits_cleanly
    def main() -> int:
        raise OSError(number, 'As it says', 'run/summary.json')

    assert main() == status
    said = f'error: run/summary.json: As it says; {remedy}, and run the same command again\n'
    assert capsys.readouterr().err == said


class ClientConnectionError(Exception):
    """As aiohttp's, which gcsfs raises without a network."""


class HttpError(Exception):
    """As that of gcsfs."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@pytest.mark.parametrize(
    ('cause', 'status'),
    [
        (OSError(errno.ESTALE, 'Stale file handle'), 75),
        (TimeoutError('timed out'), 75),
        (ClientConnectionError(), 75),
        (HttpError(503), 75),
        (HttpError(404), 2),
        (OSError(errno.ENOENT, 'No such file'), 2),
        (ValueError('damaged'), 2),
    ],
)
def test_a_message_about_something_that_is_away(cause: Exception, status: int) -> None:
    """What caused an error decides, wherever its message was written."""

    @exits_cleanly
    def main() -> int:
        try:
            raise RuntimeError from cause
        except RuntimeError as error:
            raise UserError('--workdir=gs://b/r: cannot be reached') from error

    assert main() == status


@pytest.mark.parametrize(
    ('error', 'reason', 'typed'),
    [
        (OSError(errno.EIO, 'As it says', 'file'), 'As it says', 'As it says'),
        (OSError('no connection\nto it'), 'no connection', 'OSError: no connection'),
        (ValueError("a read failed [os_error_code='28']"), 'No space left on device', 'No space left on device'),
        (ValueError('x' * 300), 'x' * 200, f'ValueError: {"x" * 200}'),
        (EOFError(), 'EOFError', 'EOFError'),
    ],
)
def test_the_reason_of_an_exception(error: Exception, reason: str, typed: str) -> None:
    """An error of storage may have no number and no reason of the system."""
    assert (reason_of(error), reason_of(error, typed=True)) == (reason, typed)


def test_what_a_restart_cures(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> int:
        raise RestartError('process 1 died')

    assert main() == 75
    assert capsys.readouterr().err == 'error: process 1 died\n'


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (HttpError(503), 'HttpError: 503'),
        (HttpError(429), 'HttpError: 429'),
        (ClientConnectionError(), 'ClientConnectionError: ClientConnectionError'),
        (ConnectionError('reset'), 'ConnectionError: reset'),
    ],
)
def test_a_remote_store_that_is_away(capsys: pytest.CaptureFixture[str], error: Exception, said: str) -> None:
    """Clients of remote stores raise what is no OSError, or has no number."""

    @exits_cleanly
    def main() -> int:
        raise error

    assert main() == 75
    assert capsys.readouterr().err == f'error: {said}; run the same command again\n'


def test_windows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, 'platform', 'win32')
    assert exits_cleanly(lambda: 0)() == EXIT_USER_ERROR
    assert capsys.readouterr().err == 'error: Windows is not supported: use Linux, macOS, or Linux in WSL 2\n'


def test_faults_of_ours_keep_their_traceback() -> None:
    @exits_cleanly
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_a_refusal_of_a_remote_store_keeps_its_traceback() -> None:
    @exits_cleanly
    def main() -> int:
        raise HttpError(400)

    with pytest.raises(HttpError):
        main()
