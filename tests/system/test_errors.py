"""How entry points end."""

import errno

import pytest

from dualcl_jax.system.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, exits_cleanly


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
    ('number', 'remedy'), [(errno.ENOSPC, 'free some space there'), (errno.EROFS, 'fix that'), (errno.EIO, 'fix that')]
)
def test_storage_is_one_line(capsys: pytest.CaptureFixture[str], number: int, remedy: str) -> None:
    @exits_cleanly
    def main() -> int:
        raise OSError(number, 'As it says', 'run/summary.json')

    assert main() == EXIT_USER_ERROR
    said = f'error: run/summary.json: As it says; {remedy}, and run the same command again\n'
    assert capsys.readouterr().err == said


def test_faults_of_ours_keep_their_traceback() -> None:
    @exits_cleanly
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()
