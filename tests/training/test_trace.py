"""A run writes a trace of some steps and is otherwise unchanged."""

from pathlib import Path

import pytest

from tests.support.runs import Trainer, summary


def test_profile(trainer: Trainer, tmp_path: Path) -> None:
    traced, plain = tmp_path / 'traced', tmp_path / 'plain'
    trainer.run(traced, '--profile=2')
    trainer.run(plain)
    assert list(traced.glob('profile/plugins/profile/*/*.xplane.pb'))
    assert not (plain / 'profile').exists()
    assert summary(traced)['state_sha256'] == summary(plain)['state_sha256']


@pytest.mark.slow
def test_a_run_shorter_than_its_trace(trainer: Trainer, tmp_path: Path) -> None:
    trainer.run(tmp_path, '--profile=100', 'train.steps=8')
    assert list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))
