"""Compares the ring buffer with lists and deques in Python."""

from collections import deque
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, empty_queue, enqueue, mean_age, noise_queue, valid

DIM = 2
fast_enqueue, fast_valid, fast_age = jax.jit(enqueue), jax.jit(valid), jax.jit(mean_age)


def batch_of(count, first):
    """Keys, ids and labels of `count` examples, which contain the example's number, starting at `first`."""
    number = np.arange(first, first + count)
    keys = np.stack([number, -number], axis=1).astype(np.float32)
    return keys, number.astype(np.int32), (number % 3).astype(np.int32)


@settings(max_examples=60)
@given(
    size=st.sampled_from([1, 3, 5]),
    counts=st.lists(st.sampled_from([0, 1, 2, 4, 7]), max_size=8),
    starts_full=st.booleans(),
)
def test_any_sequence_of_batches(size, counts, starts_full):
    queue = noise_queue(jax.random.key(0), size, DIM) if starts_full else empty_queue(size, DIM)
    noise = np.array(queue.keys)
    slots, newest, cursor, written = [None] * size, deque(maxlen=size), 0, 0
    for step, count in enumerate(counts):
        keys, ids, labels = batch_of(count, written)
        queue = fast_enqueue(queue, keys, ids, labels, jnp.int32(step))
        for row in zip(keys.tolist(), ids.tolist(), labels.tolist(), strict=True):
            slots[cursor] = (*row, step)
            newest.append(row[1])
            cursor = (cursor + 1) % size
        written += count

        filled = size if starts_full else min(written, size)
        assert (int(queue.cursor), int(queue.filled), queue.size) == (cursor, filled, size)
        np.testing.assert_array_equal(fast_valid(queue), [j < filled for j in range(size)])
        expected = [slot or (noise[j].tolist(), UNKNOWN, UNKNOWN, UNKNOWN) for j, slot in enumerate(slots)]
        columns = (np.asarray(c).tolist() for c in (queue.keys, queue.ids, queue.labels, queue.enqueued_at))
        assert list(zip(*columns, strict=True)) == expected
        from_the_oldest = np.roll(np.asarray(queue.ids), -cursor)
        assert from_the_oldest[size - len(newest) :].tolist() == list(newest)
        ages = [step + 2 - slot[3] for slot in slots if slot]
        np.testing.assert_allclose(fast_age(queue, jnp.int32(step + 2)), np.mean(ages) if ages else 0, rtol=1e-6)
    assert [leaf.dtype for leaf in jax.tree.leaves(queue)] == [jnp.float32, *[jnp.int32] * 5]


def test_enqueue_returns_a_new_queue():
    before = empty_queue(4, DIM)
    enqueue(before, *map(jnp.asarray, batch_of(3, 0)), jnp.int32(0))
    assert int(before.filled) == 0
    assert not before.keys.any()


def test_the_same_in_a_compiled_loop():
    """`enqueue` can be traced: 5 batches in `lax.scan` give the same queue as 5 calls."""
    rows = [batch_of(3, 3 * step) for step in range(5)]
    steps = jnp.arange(5, dtype=jnp.int32)

    def body(queue, row):
        return enqueue(queue, *row), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    looped, _ = jax.jit(lambda queue: jax.lax.scan(body, queue, (*stacked, steps)))(empty_queue(4, DIM))
    called = empty_queue(4, DIM)
    for row, step in zip(rows, steps, strict=True):
        called = enqueue(called, *map(jnp.asarray, row), step)
    assert isinstance(looped, Queue)
    chex.assert_trees_all_equal(looped, called)


@pytest.mark.parametrize('size', [1, 7, 64])
def test_noise_fills_the_queue_with_unit_vectors(size):
    make = jax.jit(partial(noise_queue, size=size, dim=16))
    queue = make(jax.random.key(0))
    np.testing.assert_allclose(np.linalg.norm(queue.keys, axis=1), 1, rtol=1e-6)
    assert len(np.unique(queue.keys, axis=0)) == size
    assert valid(queue).all()
    assert (int(queue.cursor), int(queue.filled)) == (0, size)
    for column in (queue.ids, queue.labels, queue.enqueued_at):
        np.testing.assert_array_equal(column, np.full(size, UNKNOWN))
    assert mean_age(queue, jnp.int32(9)) == 0
    assert not np.array_equal(queue.keys, make(jax.random.key(1)).keys)


def test_noise_has_no_direction():
    keys = np.asarray(noise_queue(jax.random.key(0), 4096, 8).keys)
    np.testing.assert_allclose(keys.mean(0), np.zeros(8), atol=5 * np.sqrt(1 / 8 / 4096))
    np.testing.assert_allclose(keys.T @ keys / 4096, np.eye(8) / 8, atol=0.02)


def test_an_empty_queue_holds_nothing():
    queue = empty_queue(5, DIM)
    assert not valid(queue).any()
    assert (int(queue.cursor), int(queue.filled)) == (0, 0)
    assert mean_age(queue, jnp.int32(3)) == 0


@pytest.mark.parametrize('count', [0, 3, 5, 12])
def test_a_queue_that_is_not_written(count):
    """The queue stays the same bit for bit, for any number of keys, before and after it wraps around."""
    for written in (0, 3, 7):
        queue = fast_enqueue(empty_queue(5, DIM), *batch_of(written, 0), jnp.int32(0))
        keys, ids, labels = batch_of(count, 100)
        held = fast_enqueue(queue, np.full_like(keys, np.nan), ids, labels, jnp.int32(9), when=jnp.bool_(False))
        chex.assert_trees_all_equal(held, queue)
        expected = fast_enqueue(queue, keys, ids, labels, jnp.int32(9))
        chex.assert_trees_all_equal(
            fast_enqueue(queue, keys, ids, labels, jnp.int32(9), when=jnp.bool_(True)), expected
        )
