"""Standard streams that are closed, full, gone or of another encoding do not stop a program."""

import contextlib
import os
import pty
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


HANGING = """
from dualcl_jax.system.console import Console
from dualcl_jax.system.errors import RestartError
from dualcl_jax.system.processes import heartbeat

console = Console()
console.start(total_steps=10, start_step=0)
heartbeat.leave(RestartError('this process hangs'))
"""


def test_the_cursor_comes_back_however_a_run_ends() -> None:
    """The progress bar hides it, and a process that hangs is ended by another thread."""
    mine, terminal = pty.openpty()
    environment = os.environ | {'TERM': 'xterm'}
    command = [sys.executable, '-c', HANGING]
    ended = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b''
    with contextlib.suppress(OSError):  # of Linux, at the end
        while part := os.read(mine, 4096):
            shown += part
    os.close(mine)
    assert ended.wait() == 75
    assert shown.rindex(b'\x1b[?25h') > shown.rindex(b'\x1b[?25l')
    assert b'error: this process hangs' in shown
