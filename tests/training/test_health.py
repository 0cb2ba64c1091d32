"""Warnings of runs that learn nothing: told when they have lasted, and once."""

from typing import Any

from dualcl_jax.training.health import PATIENCE, warning


def record(step: int, *, loss: float = 5.0, chance: float = 7.0, std: float = 0.8) -> dict[str, Any]:
    return {'step': step, 'train/loss': loss, 'train/loss_chance': chance, 'train/feature_std': std}


def told(records: list[dict[str, Any]], total_steps: int) -> list[tuple[int, str]]:
    """Steps at which something is told, as a run would ask after each record."""
    found = [
        (records[count - 1]['step'], warning(records[:count], total_steps)) for count in range(1, len(records) + 1)
    ]
    return [(step, text) for step, text in found if text]


def test_healthy_run() -> None:
    assert told([record(step, loss=7.0 - step / 10) for step in range(2, 40)], 40) == []


def test_at_chance() -> None:
    """After a tenth of the run, when PATIENCE records in a row show it, once."""
    [(step, text)] = told([record(step, loss=6.95) for step in range(1, 40)], 100)
    assert step == 10 + PATIENCE
    assert text.startswith('the loss stays at its chance level: try ')
    assert f'(step {step})' in text


def test_collapsed() -> None:
    [(step, text)] = told([record(step, std=0.01) for step in range(1, 20)], 100)
    assert step == PATIENCE
    assert 'collapsed' in text


def test_not_for_a_while_only() -> None:
    assert told([record(step, std=0.01 if step % PATIENCE else 0.8) for step in range(1, 40)], 100) == []


def test_first_steps_without_negatives() -> None:
    """An empty queue: loss 0 and chance level 0."""
    assert told([record(step, loss=0.0, chance=0.0) for step in range(1, 40)], 40) == []


def test_records_of_the_monitor_are_passed_over() -> None:
    records = []
    for step in range(1, 20):
        records += [record(step, std=0.01), {'step': step, 'monitor/knn_top1_backbone': 0.4}]
    assert warning(records[: 2 * PATIENCE], 100)
    assert warning(records[: 2 * PATIENCE - 2], 100) is None
    assert warning(records, 100) is None
