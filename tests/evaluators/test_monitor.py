"""Which examples the monitor of a run classifies, and what its header says of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from dualcl_jax.data import ArraySource, Splits
from dualcl_jax.evaluators.monitor import KnnMonitor, can_monitor
from dualcl_jax.training import summary

NAMES = ('ant', 'bee', 'cat')


def source(labels: list[int]) -> ArraySource:
    """Examples that are the one-hot vectors of their labels."""
    return ArraySource(
        'vectors', np.eye(4, dtype=np.float32)[labels], np.array(labels, np.int32), NAMES, kind='vectors'
    )


class Identity:
    """Features that are the examples."""

    def __call__(self, variables: Any, examples: ArraySource, rows: np.ndarray) -> SimpleNamespace:
        found = examples.examples(rows)
        return SimpleNamespace(backbone=found, projection=found)

    def raw(self, examples: ArraySource, rows: np.ndarray) -> np.ndarray:
        return examples.examples(rows)


SPLITS = Splits(source([0, 0, 1, -1]), source([0, 1, 2, 2, -1]))


@pytest.mark.parametrize(
    ('unseen', 'top1', 'said'), [('left_out', 1.0, 'are left out'), ('wrong', 0.5, 'count as wrong')]
)
def test_test_examples_of_classes_without_training_examples(unseen: str, top1: float, said: str) -> None:
    embed: Any = Identity()
    monitor = KnnMonitor(embed, SPLITS, k=1, temperature=0.1, bank=0, unseen=unseen)
    assert monitor.encoder(None) == {'monitor/knn_top1_backbone': top1, 'monitor/knn_top1_projection': top1}
    assert monitor.references() == {'monitor/knn_top1_raw_pixels': top1}
    settings = ConfigDict({'k': 1, 'bank': 0, 'unseen': unseen})
    assert summary._limits_of_knn(SPLITS, settings) == {
        'kNN accuracy': f'2 test images of classes without training images {said}'
    }


def test_a_bank_is_the_same_subset_every_time() -> None:
    embed: Any = Identity()
    splits = Splits(source([0, 1, -1, 2, 3]), source([0, 1, 2, 3]))
    monitors = [KnnMonitor(embed, splits, k=1, temperature=0.1, bank=bank, unseen='left_out') for bank in (2, 2, 4, 0)]
    first, again, *others = (monitor.bank_indices.tolist() for monitor in monitors)
    assert first == again == sorted({0, 1, 3, 4} & set(first))
    assert others == [[0, 1, 3, 4]] * 2
    assert len(first) == 2
    assert [monitor.encoder(None)['monitor/knn_top1_backbone'] for monitor in monitors] == [0.5, 0.5, 1.0, 1.0]


def test_what_can_be_monitored() -> None:
    assert can_monitor(SPLITS)
    others = Splits(source([0, 1]), source([2, -1]))
    assert not can_monitor(others)
    assert can_monitor(others, 'wrong')
    assert not can_monitor(Splits(source([-1, -1]), source([-1, 2])), 'wrong')
    assert not can_monitor(Splits(source([0, 1]), source([-1])))
    assert not can_monitor(Splits(source([0, 1]), None))
