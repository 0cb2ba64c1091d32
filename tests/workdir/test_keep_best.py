"""Which checkpoints are kept: the newest, and the best by kNN, over any number of resumes."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from dualcl_jax.method.state import TrainState
from dualcl_jax.system.devices import device_mesh, replicate
from dualcl_jax.workdir.checkpoint import Checkpoints
from tests.support.runs import checkpoints

Scores = Sequence[tuple[int, float | None]]


def state(step: int) -> TrainState:
    empty: dict = {}
    small = TrainState(jnp.int32(step), {'w': np.ones(3, np.float32)}, empty, empty, empty, empty, None)
    return replicate(small, device_mesh())


def save(folder: Path, scores: Scores, *, keep: int = 1, keep_best: int = 2) -> list[int]:
    """Opens the checkpoints of a run, saves some with their kNN accuracy, and returns the steps that remain."""
    store = Checkpoints(epath.Path(folder / 'checkpoints'), keep=keep, keep_best=keep_best)
    with store:
        for step, knn in scores:
            assert store.save(step, state(step), {}, knn) == ''
    return checkpoints(folder)


BEFORE: Scores = [(10, 0.3), (20, 0.8), (30, 0.9), (40, 0.5)]


def test_the_best_and_the_newest_stay(tmp_path: Path) -> None:
    assert save(tmp_path, BEFORE) == [20, 30, 40]
    assert save(tmp_path / 'without', BEFORE, keep_best=0) == [40]


@pytest.mark.parametrize(
    ('after', 'left'),
    [
        ([(50, 0.6)], [20, 30, 50]),  # not better than the earlier ones
        ([(50, 0.85), (60, 0.1)], [30, 50, 60]),
        ([(50, 0.8), (60, 0.1)], [30, 50, 60]),  # of equal ones the later
        ([(50, 0.95), (60, 0.99), (70, 0.1)], [50, 60, 70]),
        ([(50, None), (60, None)], [20, 30, 60]),  # without a measurement only the newest
    ],
)
def test_ranking_survives_a_resume(tmp_path: Path, after: Scores, left: list[int]) -> None:
    save(tmp_path, BEFORE)
    assert save(tmp_path, after) == left


def test_of_checkpoints_with_one_measurement_the_first_counts(tmp_path: Path) -> None:
    scores = {10: (0.3, 9), 20: (0.8, 19), 30: (0.8, 19), 40: (0.8, 19), 50: (0.1, 45), 60: (0.1, 45)}
    for step, (score, measured) in scores.items():
        with Checkpoints(epath.Path(tmp_path / 'checkpoints'), keep=1, keep_best=1) as store:
            store.save(step, state(step), {}, score, measured)
    assert checkpoints(tmp_path) == [20, 60]


def test_the_score_of_an_untrained_encoder_does_not_count(tmp_path: Path) -> None:
    for step, (score, measured) in {4: (0.9, 0), 10: (0.3, 10), 20: (0.2, 20)}.items():
        with Checkpoints(epath.Path(tmp_path / 'checkpoints'), keep=1, keep_best=1) as store:
            store.save(step, state(step), {}, score, measured)
    assert checkpoints(tmp_path) == [10, 20]


def test_ranking_survives_many_resumes(tmp_path: Path) -> None:
    for score in BEFORE:
        save(tmp_path, [score])
    assert checkpoints(tmp_path) == [20, 30, 40]


def test_ranking_survives_a_save_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager is reopened after a failed save."""
    with Checkpoints(epath.Path(tmp_path / 'checkpoints'), keep_best=2) as store:
        for step, knn in BEFORE:
            store.save(step, state(step), {}, knn)
        with monkeypatch.context() as refusing:
            refusing.setattr('dualcl_jax.workdir.checkpoint.check_writable', refuse)
            assert 'step 50 could not be saved' in store.save(50, state(50), {}, 0.99)
        store.save(60, state(60), {}, 0.4)
    assert checkpoints(tmp_path) == [20, 30, 60]


def refuse(folder: epath.Path) -> None:
    raise OSError(28, 'No space left on device')


def test_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    """A checkpoint with an unreadable record might be the best: it is kept, and replaces no other."""
    save(tmp_path, BEFORE)
    (tmp_path / 'checkpoints' / '00000030' / 'run' / 'metadata').write_text('{"knn_top1": 0.99')
    (tmp_path / 'checkpoints' / '00000040' / 'run' / 'metadata').unlink()
    assert save(tmp_path, [(50, 0.6), (60, 0.1)]) == [20, 30, 40, 50, 60]
