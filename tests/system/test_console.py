"""Progress without a terminal: plain lines that name their step."""

import pytest

from dualcl_jax.system import console
from dualcl_jax.system.console import Console, duration


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, 'PLAIN_SECONDS', 0.0)
    progress = Console()
    progress.start(200, 0)
    progress.step(40)
    progress.status(20, 'loss 1.0', None)
    progress.status(40, 'loss 0.9', 0.5)
    progress.status(200, 'loss 0.5', 0.5)
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        'step 20/200  loss 1.0',
        'step 40/200  loss 0.9  1 min 20 s left',
        'step 200/200  loss 0.5  0 s left',
    ]


def test_plain_lines_come_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console()
    progress.start(20, 0)
    for step in range(1, 21):
        progress.status(step, 'training', 1.0)
    assert capsys.readouterr().out == 'step 20/20  training  0 s left\n'


def test_text_of_users_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console()
    progress.facts({'workdir': 'runs/[bold]lr[/b]'})
    progress.warn('runs/[red]: full')
    assert capsys.readouterr().out.splitlines() == ['workdir  runs/[bold]lr[/b]', 'warning: runs/[red]: full']


def test_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console(silent=True)
    progress.facts({'data': 'none'})
    progress.start(1, 0)
    progress.status(1, 'training', 1.0)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.4, '0 s'), (59.6, '1 min 00 s'), (61, '1 min 01 s'), (7260, '2 h 01 min')]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
