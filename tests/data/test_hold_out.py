"""Which examples are held out for validation and for testing: by class, and copies of an example together."""

import numpy as np
import pytest

from dualcl_jax.data.source import ArraySource, first_equal, held_out_by_content, hold_out
from dualcl_jax.system.errors import UserError


def source(content: np.ndarray, labels: np.ndarray) -> ArraySource:
    """Examples that are equal where their `content` [N] is."""
    return ArraySource('texts', content[:, None], labels, tuple('abcde'), kind='text', ids=first_equal(content))


def digests(content: np.ndarray) -> np.ndarray:
    """A digest of each number: uint8 [N, 8]."""
    return np.random.default_rng(0).integers(0, 256, (int(content.max()) + 1, 8), np.uint8)[content]


def contents(part: ArraySource) -> np.ndarray:
    return part.arrays[:, 0]


@pytest.mark.parametrize('how', ['auto', 'grouped'])
def test_copies_are_held_out_together(how: str) -> None:
    """Of 500 texts, each four times, a tenth of the texts of each class is held out, with all of its copies."""
    content = np.random.default_rng(1).permutation(np.repeat(np.arange(500), 4))
    labels = (content % 5).astype(np.int32)
    train, validation = hold_out(source(content, labels), 0.1, how)
    assert (len(train), len(validation)) == (1800, 200)
    assert not np.isin(contents(validation), contents(train)).any()
    assert np.bincount(validation.labels).tolist() == [40] * 5
    apart = hold_out(source(content, labels), 0.1, 'stratified')
    assert np.isin(contents(apart[1]), contents(apart[0])).mean() > 0.9


@pytest.mark.parametrize('seed', range(3))
def test_without_copies_nothing_else_is_held_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    content, labels = np.arange(150), rng.integers(-1, 5, 150).astype(np.int32)
    stratified, grouped = (hold_out(source(content, labels), 0.2, how) for how in ('stratified', 'grouped'))
    assert [part.fingerprint for part in stratified] == [part.fingerprint for part in grouped]
    marks = [held_out_by_content(digests(content), labels, 0.2, how) for how in ('stratified', 'grouped', 'auto')]
    np.testing.assert_array_equal(marks[0], marks[1])
    np.testing.assert_array_equal(marks[0], marks[2])


def test_copies_have_the_class_of_the_first_one_with_a_class() -> None:
    """Copies without a class, or with another one, do not change how many of each class are held out."""
    content = np.concatenate([np.arange(40), np.arange(40), np.arange(40)])
    labels = np.concatenate([np.full(40, -1), np.arange(40) % 4, np.full(40, 4)]).astype(np.int32)
    _, validation = hold_out(source(content, labels), 0.25, 'grouped')
    assert sorted(np.bincount(validation.labels[validation.labels >= 0])) == [2, 2, 3, 3, 10]
    in_test = held_out_by_content(digests(content), labels, 0.25, 'grouped')
    np.testing.assert_array_equal(in_test[:40], in_test[40:80])
    np.testing.assert_array_equal(in_test[:40], in_test[80:])
    assert in_test.any()


@pytest.mark.parametrize('seed', range(5))
def test_copies_are_tested_together_in_small_classes(seed: int) -> None:
    """Classes of two texts, each four times: one of the two is for testing, with all of its copies."""
    content = np.random.default_rng(seed).permutation(np.repeat(np.arange(200), 4))
    in_test = held_out_by_content(digests(content), (content // 2).astype(np.int32), 0.3, 'grouped')
    assert not np.isin(content[in_test], content[~in_test]).any()
    assert in_test.sum() == 400
    single = held_out_by_content(digests(content), content.astype(np.int32), 0.9, 'grouped')
    assert not single.any()  # a class of one text is for training, however many copies it has


def test_a_share_of_too_few_different_examples_is_an_error() -> None:
    content = np.repeat(np.arange(4), 100)
    with pytest.raises(UserError, match=r'holds out 0 of the 4 different training examples'):
        hold_out(source(content, np.zeros(400, np.int32)), 0.1, 'grouped')
