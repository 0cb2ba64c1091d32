"""The memory queue: a ring buffer of keys with the image, class and step of each.

MoCo (1911.05722, §3.1): the newest batch of keys replaces the oldest. A queue is a plain pytree, and every function
here returns a new one. Slot `cursor` is written next, so it holds the oldest key once the queue is full.

A queue may be sharded over the devices of a mapped axis: device i holds K/n slots, starting with slot i·K/n. Each
device then calls these functions with its own slots and the name of the axis; `cursor` and `filled` are those of the
whole queue.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

UNKNOWN = -1
"""The image id, class or step of a slot without an image: an empty slot, or MoCo's initial noise."""


@struct.dataclass
class Queue:
    """A ring buffer of K keys.

    Attributes:
      keys: [K, D] float32, unit length where filled.
      ids: [K] int32, index of the image in the training set, or `UNKNOWN`.
      labels: [K] int32, class of the image, or `UNKNOWN`. Used to measure false negatives, never in the loss.
      enqueued_at: [K] int32, the step that wrote the slot, or `UNKNOWN`.
      cursor: [] int32 in [0, K), the slot written next.
      filled: [] int32 in [0, K], the number of slots that hold a key; these are always the first slots.
    """

    keys: jax.Array
    ids: jax.Array
    labels: jax.Array
    enqueued_at: jax.Array
    cursor: jax.Array
    filled: jax.Array

    @property
    def size(self) -> int:
        """The number of local slots: K, or K/n for a sharded queue."""
        return self.keys.shape[0]


def empty_queue(size: int, dim: int) -> Queue:
    """A queue without valid slots: keys are zero, everything else is unknown.

    Example:
      >>> int(empty_queue(4, 2).filled)
      0
    """

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
    """A queue full of random unit vectors without images, as at the start of MoCo (1911.05722, its published code).

    Example:
      >>> queue = noise_queue(jax.random.key(0), 4, 2)
      >>> queue.keys.shape, int(queue.filled), queue.ids.tolist()
      ((4, 2), 4, [-1, -1, -1, -1])
    """
    noise = jax.random.normal(rng, (size, dim), jnp.float32)
    keys = noise / jnp.linalg.norm(noise, axis=1, keepdims=True)
    return dataclasses.replace(empty_queue(size, dim), keys=keys, filled=jnp.asarray(size, jnp.int32))


def batch_queue(keys: jax.Array, ids: jax.Array, labels: jax.Array, step: jax.Array) -> Queue:
    """The keys [n, D] of one step as a full queue, for training without a queue: negatives from the batch (2104.02057).

    Example:
      >>> queue = batch_queue(jnp.eye(2), jnp.array([7, 8]), jnp.array([0, 1]), jnp.array(3))
      >>> int(queue.filled), queue.enqueued_at.tolist()
      (2, [3, 3])
    """
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
    """Writes n keys after the newest ones, over the oldest.

    n is arbitrary. If n exceeds K, only the newest K are kept, in the slots in which writing all of them one by one
    would have left them.

    Args:
      queue: K slots of dimension D.
      keys: [n, D] float32, oldest first.
      ids: [n] int32, image of each key.
      labels: [n] int32, class of each key or `UNKNOWN`.
      step: [] int32, the step that made the keys.
      axis_name: axis of the devices that a sharded queue lies on; all of them get the same keys.
      when: [] bool; if it is false, the queue is unchanged.

    Example:
      >>> queue = empty_queue(4, 2)
      >>> queue = enqueue(queue, jnp.eye(2), jnp.array([7, 8]), jnp.array([0, 1]), step=jnp.array(3))
      >>> queue.ids.tolist(), int(queue.cursor), int(queue.filled)
      ([7, 8, -1, -1], 2, 2)
    """
    first, size, count = first_slot(queue, axis_name), total_size(queue, axis_name), keys.shape[0]
    kept = min(count, size)
    slots = (queue.cursor + jnp.arange(count - kept, count, dtype=jnp.int32)) % size
    rows_of_slots = (slots - first) % size  # slots of other devices lie past the end, where nothing is written
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
    """K, the number of slots on all devices.

    Example:
      >>> total_size(empty_queue(4, 2))
      4
    """
    return queue.size if axis_name is None else queue.size * jax.lax.axis_size(axis_name)


def first_slot(queue: Queue, axis_name: str | None = None) -> jax.Array:
    """The index of the first local slot in the whole queue: [] int32.

    Example:
      >>> int(first_slot(empty_queue(4, 2)))
      0
    """
    index = jnp.zeros((), jnp.int32) if axis_name is None else jax.lax.axis_index(axis_name)
    return index * queue.size


def valid(queue: Queue, axis_name: str | None = None) -> jax.Array:
    """Which of the local slots hold a key: [K] bool.

    Example:
      >>> valid(dataclasses.replace(empty_queue(4, 2), filled=jnp.array(1))).tolist()
      [True, False, False, False]
    """
    return first_slot(queue, axis_name) + jnp.arange(queue.size, dtype=jnp.int32) < queue.filled


def mean_age(queue: Queue, step: jax.Array, axis_name: str | None = None) -> jax.Array:
    """The mean number of steps since the keys of images were written: [] float32; 0 if there are none.

    Example:
      >>> queue = batch_queue(jnp.eye(2), jnp.array([7, 8]), jnp.array([0, 1]), step=jnp.array(3))
      >>> float(mean_age(queue, step=jnp.array(5)))
      2.0
    """
    of_image = queue.enqueued_at != UNKNOWN
    age = jnp.where(of_image, step - queue.enqueued_at, 0)
    sums = age.astype(jnp.float32).sum(), of_image.astype(jnp.float32).sum()
    total, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return total / jnp.maximum(count, 1.0)
