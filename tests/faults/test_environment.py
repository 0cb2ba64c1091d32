"""Runs in hostile environments: each works, or gives one line and status 2."""

from pathlib import Path

import pytest

from tests.faults import environment
from tests.support.runs import Trainer

CASES = [name if name in environment.FAST else pytest.param(name, marks=pytest.mark.slow) for name in environment.CASES]


@pytest.mark.parametrize('name', CASES)
def test_environment(trainer: Trainer, tmp_path: Path, name: str) -> None:
    if name in environment.MOUNTING and not environment.can_mount():
        pytest.skip('needs unshare, and leave to mount')
    environment.CASES[name](trainer, tmp_path)
