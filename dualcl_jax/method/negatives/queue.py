"""The memory queue: a ring buffer of keys with the image, class and step that each came from.

MoCo (1911.05722, §3.1): the newest batch of keys replaces the oldest. A queue is a plain pytree, and every function
here returns a new one. Slot `cursor` is the next to be written, so it is the oldest once the queue is full.

A queue may be sharded over the devices of a mapped axis: device i holds K/n slots from i·K/n on. Each device then calls
these functions with its own slots and the name of the axis; `cursor` and `filled` are those of the whole queue.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

UNKNOWN = -1
"""The image id, class or step of a slot that no image stands behind: an empty slot, or MoCo's initial noise."""


@struct.dataclass
class Queue:
    """A ring buffer of K keys.

    Attributes:
      keys: [K, D] float32, unit length where filled.
      ids: [K] int32, index of the image in the training set, or `UNKNOWN`.
      labels: [K] int32, class of the image, or `UNKNOWN`. Measures false negatives; never part of the loss.
      enqueued_at: [K] int32, the step that wrote the slot, or `UNKNOWN`.
      cursor: [] int32 in [0, K), the slot written next.
      filled: [] int32 in [0, K], how many slots hold a key: always the first ones.
    """

    keys: jax.Array
    ids: jax.Array
    labels: jax.Array
    enqueued_at: jax.Array
    cursor: jax.Array
    filled: jax.Array

    @property
    def size(self) -> int:
        """How many slots are at hand: K, or K/n of a sharded queue."""
        return self.keys.shape[0]


def empty_queue(size: int, dim: int) -> Queue:
    """A queue without a valid slot: keys zero, everything else unknown."""

    def unknown() -> jax.Array:
        return jnp.full((size,), UNKNOWN, jnp.int32)

    return Queue(
        keys=jnp.zeros((size, dim), jnp.float32),
        ids=unknown(),
        labels=unknown(),
        enqueued_at=unknown(),
        cursor=jnp.zeros((), jnp.int32),
        filled=jnp.zeros((), jnp.int32),
    )


def noise_queue(rng: jax.Array, size: int, dim: int) -> Queue:
    """A queue full of random unit vectors of no image, as MoCo starts (1911.05722, its published code)."""
    noise = jax.random.normal(rng, (size, dim), jnp.float32)
    keys = noise / jnp.linalg.norm(noise, axis=1, keepdims=True)
    return dataclasses.replace(empty_queue(size, dim), keys=keys, filled=jnp.asarray(size, jnp.int32))


def batch_queue(keys: jax.Array, ids: jax.Array, labels: jax.Array, step: jax.Array) -> Queue:
    """The keys [n, D] of one step as a full queue, for training without one: negatives from the batch (2104.02057)."""
    count = keys.shape[0]
    return Queue(
        keys=keys,
        ids=ids,
        labels=labels,
        enqueued_at=jnp.broadcast_to(step, (count,)),
        cursor=jnp.zeros((), jnp.int32),
        filled=jnp.asarray(count, jnp.int32),
    )


def enqueue(
    queue: Queue,
    keys: jax.Array,
    ids: jax.Array,
    labels: jax.Array,
    step: jax.Array,
    axis_name: str | None = None,
    *,
    when: jax.Array | bool = True,
) -> Queue:
    """Writes n keys behind the newest, over the oldest.

    n may be anything. Where n exceeds K only the newest K stay, in the slots where writing all of them one by one would
    have left them.

    Args:
      queue: K slots of dimension D.
      keys: [n, D] float32, oldest first.
      ids: [n] int32, image of each key.
      labels: [n] int32, class of each key or `UNKNOWN`.
      step: [] int32, the step that made the keys.
      axis_name: of the devices that a sharded queue lies on; every one of them gets the same keys.
      when: [] bool; where it is false, the queue stays as it is.
    """
    first, size, count = first_slot(queue, axis_name), total_size(queue, axis_name), keys.shape[0]
    kept = min(count, size)
    slots = (queue.cursor + jnp.arange(count - kept, count, dtype=jnp.int32)) % size
    rows_of_slots = (slots - first) % size  # those of other devices lie past the end, where nothing is written
    written = jnp.where(when, count, 0)
    rows_of_slots = jnp.where(when, rows_of_slots, size + jnp.arange(kept, dtype=jnp.int32))

    def write(column: jax.Array, rows: jax.Array) -> jax.Array:
        return column.at[rows_of_slots].set(rows[count - kept :], mode='drop', unique_indices=True)

    return Queue(
        keys=write(queue.keys, keys),
        ids=write(queue.ids, ids),
        labels=write(queue.labels, labels),
        enqueued_at=write(queue.enqueued_at, jnp.broadcast_to(step, (count,))),
        cursor=(queue.cursor + written) % size,
        filled=jnp.minimum(queue.filled + written, size),
    )


def total_size(queue: Queue, axis_name: str | None = None) -> int:
    """K, the number of slots on all devices."""
    return queue.size if axis_name is None else queue.size * jax.lax.axis_size(axis_name)


def first_slot(queue: Queue, axis_name: str | None = None) -> jax.Array:
    """[] int32: the number in the whole queue of the first slot at hand."""
    index = jnp.zeros((), jnp.int32) if axis_name is None else jax.lax.axis_index(axis_name)
    return index * queue.size


def valid(queue: Queue, axis_name: str | None = None) -> jax.Array:
    """[K] bool: which of the slots at hand hold a key."""
    return first_slot(queue, axis_name) + jnp.arange(queue.size, dtype=jnp.int32) < queue.filled


def mean_age(queue: Queue, step: jax.Array, axis_name: str | None = None) -> jax.Array:
    """[] float32: how many steps ago the keys of images were written, on average; 0 while there are none."""
    of_image = queue.enqueued_at != UNKNOWN
    age = jnp.where(of_image, step - queue.enqueued_at, 0)
    sums = age.astype(jnp.float32).sum(), of_image.astype(jnp.float32).sum()
    total, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return total / jnp.maximum(count, 1.0)
