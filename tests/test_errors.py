"""How entry points end."""

import pytest

from dualcl_jax.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, exits_cleanly


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


def test_faults_of_ours_keep_their_traceback() -> None:
    @exits_cleanly
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()
