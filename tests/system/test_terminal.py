"""Standard streams that are closed, full, gone or of another encoding do not stop a program."""

import subprocess
import sys

import pytest

from tests.support.runs import REPOSITORY

PROGRAM = r"""
import sys
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.terminal import lenient_output

@exits_cleanly
def main():
    if sys.argv[1:] == ['train']:
        with lenient_output():
            print('4 \xd7 cpu', flush=True)
            print('more')
    else:
        print('4 \xd7 \\udce9' * 30_000)
    print('done', file=sys.stderr)
    return 0

sys.exit(main())
"""


def run(redirection: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    command = ['bash', '-c', f'"$0" -c "$1" {" ".join(arguments)} {redirection}; exit ${{PIPESTATUS[0]}}']
    done = subprocess.run(
        [*command, sys.executable, PROGRAM],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('redirection', ['>&-', '>/dev/full', '| true', '<&- >&-', '>/dev/full | cat'])
def test_training_does_not_need_it(redirection: str) -> None:
    assert run(redirection, 'train') == (0, '', 'done\n')


def test_lost_results_are_an_error() -> None:
    error = 'error: standard output: No space left on device; output was lost\n'
    assert run('>/dev/full') == (2, '', f'done\n{error}')


@pytest.mark.parametrize('redirection', ['>&-', '| true'])
def test_a_reader_that_left_is_none(redirection: str) -> None:
    assert run(redirection) == (0, '', 'done\n')


def test_standard_error_is_closed() -> None:
    assert run('2>&-')[0] == run('2>/dev/full')[0] == 0


def test_ascii() -> None:
    status, out, err = run('', 'train', LC_ALL='POSIX', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    assert (status, out, err) == (0, '4 \\xd7 cpu\nmore\n', 'done\n')
