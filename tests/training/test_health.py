"""Warnings about runs that learn nothing appear once, after the fault has lasted."""

from typing import Any

from dualcl_jax.training.health import PATIENCE, warning


def record(step: int, *, loss: float = 5.0, chance: float = 7.0, std: float = 0.8) -> dict[str, Any]:
    return {'step': step, 'train/loss': loss, 'train/loss_chance': chance, 'train/feature_std': std}


def warned_steps(records: list[dict[str, Any]], total_steps: int) -> list[tuple[int, str]]:
    """The steps at which a run that checks after each record would warn."""
    found = [
        (records[count - 1]['step'], warning(records[:count], total_steps)) for count in range(1, len(records) + 1)
    ]
    return [(step, text) for step, text in found if text]


def test_healthy_run() -> None:
    assert warned_steps([record(step, loss=7.0 - step / 10) for step in range(2, 40)], 40) == []


def test_at_chance() -> None:
    """The warning appears once, after a tenth of the run, when PATIENCE consecutive records show the fault."""
    [(step, text)] = warned_steps([record(step, loss=6.95) for step in range(1, 40)], 100)
    assert step == 10 + PATIENCE
    assert text.startswith('the loss stays at its chance level: try ')
    assert f'(step {step})' in text


def test_collapsed() -> None:
    [(step, text)] = warned_steps([record(step, std=0.01) for step in range(1, 20)], 100)
    assert step == PATIENCE
    assert 'collapsed' in text


def test_near_nothing() -> None:
    """Views that hardly differ are told apart from the start; a loss that falls so far late in a run is no fault."""
    [(step, text)] = warned_steps([record(step, loss=0.05) for step in range(1, 40)], 100)
    assert step == PATIENCE
    assert 'near zero' in text
    assert warned_steps([record(step, loss=0.05) for step in range(51, 90)], 100) == []


def test_no_warning_for_a_short_fault() -> None:
    assert warned_steps([record(step, std=0.01 if step % PATIENCE else 0.8) for step in range(1, 40)], 100) == []


def test_first_steps_without_negatives() -> None:
    """With an empty queue, the loss and its chance level are 0."""
    assert warned_steps([record(step, loss=0.0, chance=0.0) for step in range(1, 40)], 40) == []


def test_no_negatives_although_the_queue_is_full() -> None:
    records = [record(step, loss=0.0, chance=0.0) | {'queue/fill': min(step / 10, 1.0)} for step in range(1, 40)]
    [(step, text)] = warned_steps(records, 40)
    assert step == 10 + PATIENCE - 1
    assert 'no negatives' in text


def test_records_of_the_monitor_are_ignored() -> None:
    records = []
    for step in range(1, 20):
        records += [record(step, std=0.01), {'step': step, 'monitor/knn_top1_backbone': 0.4}]
    assert warning(records[: 2 * PATIENCE], 100)
    assert warning(records[: 2 * PATIENCE - 2], 100) is None
    assert warning(records, 100) is None
