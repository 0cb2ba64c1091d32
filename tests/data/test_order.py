"""The data order: a pure function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualcl_jax.data.order import batch_indices, epoch_permutation, steps_per_epoch
from dualcl_jax.system.errors import UserError

seeds = st.integers(0, 2**64 - 1)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    num_examples = draw(st.integers(1, 300))
    return num_examples, draw(st.integers(1, num_examples))


@given(seed=seeds, epoch=st.integers(0, 10**6), num_examples=st.integers(1, 500))
def test_an_epoch_is_a_permutation_and_repeats_itself(seed, epoch, num_examples):
    first = epoch_permutation(seed, epoch, num_examples)
    epoch_permutation.cache_clear()
    np.testing.assert_array_equal(first, epoch_permutation(seed, epoch, num_examples))
    np.testing.assert_array_equal(np.sort(first), np.arange(num_examples))
    assert first.dtype == np.int64
    assert not first.flags.writeable


def test_the_permutation_is_numpys_philox_keyed_by_seed_and_epoch():
    expected = np.random.Generator(np.random.Philox(key=[3, 7])).permutation(100)
    np.testing.assert_array_equal(epoch_permutation(3, 7, 100), expected)


@given(seed=seeds, epoch=st.integers(0, 10**6))
def test_seeds_and_epochs_differ(seed, epoch):
    order = epoch_permutation(seed, epoch, 200)
    assert not np.array_equal(order, epoch_permutation(seed, epoch + 1, 200))
    assert not np.array_equal(order, epoch_permutation((seed + 1) % 2**64, epoch, 200))
    assert seed == epoch or not np.array_equal(order, epoch_permutation(epoch, seed, 200))


@given(size=sizes(), seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_sees_each_example_at_most_once_and_drops_less_than_a_batch(size, seed, epoch):
    num_examples, batch_size = size
    steps = steps_per_epoch(num_examples, batch_size)
    seen = [batch_indices(seed, epoch * steps + step, num_examples, batch_size) for step in range(steps)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in seen)
    everything = np.concatenate(seen)
    assert len(np.unique(everything)) == len(everything) > num_examples - batch_size
    np.testing.assert_array_equal(everything, epoch_permutation(seed, epoch, num_examples)[: len(everything)])


@given(size=sizes(), seed=seeds, start=st.integers(0, 2000))
def test_any_step_can_be_the_first(size, seed, start):
    num_examples, batch_size = size
    epoch_permutation.cache_clear()
    resumed = batch_indices(seed, start, num_examples, batch_size).copy()
    for step in range(max(0, start - 5), start):
        batch_indices(seed, step, num_examples, batch_size)
    np.testing.assert_array_equal(resumed, batch_indices(seed, start, num_examples, batch_size))


def test_too_few_examples_for_a_batch_are_a_user_error():
    with pytest.raises(UserError, match=r'train\.batch_size=8 .* 7 training examples'):
        batch_indices(0, 0, 7, 8)
    with pytest.raises(UserError, match=r'train\.batch_size=0'):
        steps_per_epoch(7, 0)


@pytest.mark.parametrize('seed', [-1, 2**64])
def test_a_seed_out_of_range_is_a_user_error(seed):
    with pytest.raises(UserError, match=f'seed={seed}'):
        batch_indices(seed, 0, 8, 4)
