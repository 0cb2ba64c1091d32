"""8 and 16 processes on this machine: one is lost or late, all are signalled, and the number changes."""

from pathlib import Path

import numpy as np
import pytest

from tests.faults import many
from tests.support.runs import Trainer, column, records, summary

pytestmark = pytest.mark.slow


def test_one_of_sixteen_is_killed(trainer: Trainer, tmp_path: Path) -> None:
    """All others name it and exit with 75; the rerun ends like an uninterrupted run. `many.py` prints the seconds."""
    many.complete(trainer, tmp_path / 'whole', 16)
    _, ended = many.lost(trainer, tmp_path / 'run', 16, victim=5)
    assert len(ended) == 15
    many.complete(trainer, tmp_path / 'run', 16)
    assert summary(tmp_path / 'run')['resumed_from_step'] >= 4
    assert summary(tmp_path / 'run')['state_sha256'] == summary(tmp_path / 'whole')['state_sha256']
    assert records(tmp_path / 'run') == records(tmp_path / 'whole')


def test_eight_are_signalled_and_become_four(trainer: Trainer, tmp_path: Path) -> None:
    many.signalled(trainer, tmp_path / 'run', 8)
    many.complete(trainer, tmp_path / 'run', 4)
    assert summary(tmp_path / 'run')['resumed_from_step'] >= 4
    trainer.run(tmp_path / 'whole', *many.FIELDS)
    np.testing.assert_allclose(
        column(tmp_path / 'run', 'train/loss'), column(tmp_path / 'whole', 'train/loss'), rtol=0, atol=1e-5
    )


def test_one_of_eight_is_missing(trainer: Trainer, tmp_path: Path) -> None:
    for process in many.missing(trainer, tmp_path / 'run', 8, absent=3):
        assert process.err.startswith('error: process 3 of 8 did not start within 60 s'), process
        assert len(process.err.splitlines()) == 1, process
