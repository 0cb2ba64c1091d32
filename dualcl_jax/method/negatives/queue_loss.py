"""InfoNCE against the queue, one block of anchors at a time: the similarities [B, K] are never stored as a whole.

An anchor's loss depends only on its own row of similarities. So each block computes its gradient together with its
loss, and keeps [b, D] instead of [b, K]. Ours; the loss is `dualcl_jax.losses.info_nce`.

With a sharded queue the keys stay on their devices, and each device compares the anchors of all devices with its own
slots. The devices exchange only anchors and gradients [B, D] and a few sums for each anchor, however long the queue is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dualcl_jax.losses import Contrast, Selector, contrast_similarities, cosine
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, valid
from dualcl_jax.method.negatives.selectors import allowed_slots

TPU_BLOCK_BYTES = 4 * 2**20
"""The size of a block's similarities on TPUs."""
GPU_BLOCK_BYTES = 256 * 2**20
"""The same on GPUs and other accelerators. On an H200, 256 anchors with 65,536 keys and the hardest quarter take 0.5 ms
in one block and 2.0 ms in blocks of 4 MiB; 4,096 anchors take 5.9 ms, and 7.2 ms in blocks of 64 MiB
(`experiments/results/gpu`)."""
CPU_BLOCK_BYTES = 64 * 2**20
"""The same on CPUs, where a product of few anchors with many keys is slow: at 16 MiB the head takes a sixth longer."""
CPU_CACHE_BYTES = 256 * 2**10
"""The size of the similarities that CPUs select from and score together: they fit into a core's cache."""
SHARDED_BLOCK_BYTES = 64 * 2**20
"""The size of a block's similarities with the slots of one device: each block needs about ten collectives."""


class Anchors(NamedTuple):
    """What is known about B anchors besides their embeddings; each [B].

    Attributes:
      positions: int32, positions in the global batch.
      ids: int32, the examples' numbers.
      labels: int32, classes, or -1.
      rngs: random keys, for a selector that draws at random; None if they are not available.
    """

    positions: jax.Array
    ids: jax.Array
    labels: jax.Array
    rngs: jax.Array | None


Rows = tuple[Anchors, jax.Array, jax.Array]
"""Anchors, their embeddings [B, D], and the cosine [B] of each anchor with its positive."""


class QueueContrast(NamedTuple):
    """B anchors against their positives and the negatives selected from the queue; each [B] float32.

    Attributes:
      loss: at least 0; 0 for an anchor without negatives.
      positive: the cosine similarity of anchor and positive.
      negatives: how many negatives were selected.
      similarity: the sum of their similarities.
      same_class: how many of them are of the anchor's class.
      comparable: for how many of them both classes are known.
    """

    loss: jax.Array
    positive: jax.Array
    negatives: jax.Array
    similarity: jax.Array
    same_class: jax.Array
    comparable: jax.Array


def contrast_with_queue(
    embeddings: jax.Array,
    positives: jax.Array,
    anchors: Anchors,
    queue: Queue,
    *,
    temperature: float,
    hardness: float = 0.0,
    select: Selector,
    k: int | jax.Array,
    mask_same_image: bool,
    axis_name: str | None = None,
) -> QueueContrast:
    """Computes `info_nce` of each anchor with its positive and the negatives selected from the queue.

    The gradient flows to anchors and positives, not to the queue. There is no second derivative.

    Args:
      embeddings: [B, D] unit vectors of the anchors.
      positives: [B, D] unit vectors; row i is the positive of anchor i.
      anchors: what else is known about them.
      queue: K keys, or this device's part of a sharded queue.
      temperature: τ > 0.
      hardness: β >= 0 of `dualcl_jax.losses.cross_entropy`.
      select: a selector of `dualcl_jax.method.negatives.selectors`; a sharded queue needs one built for its axis.
      k: how many negatives to select.
      mask_same_image: whether older keys of the anchor's own image are excluded.
      axis_name: the axis of the devices that a sharded queue lies on; each of them has equally many anchors.
    """
    queue = jax.lax.stop_gradient(queue)

    def contrast(
        anchors: Anchors, positive: jax.Array, similarities: jax.Array
    ) -> tuple[QueueContrast, jax.Array, jax.Array]:
        """The contrast, and the derivatives of each loss by its positive [b] and by its similarities [b, K]."""

        def loss(positive: jax.Array, similarities: jax.Array) -> tuple[jax.Array, Contrast]:
            allowed = allowed_slots(valid(queue, axis_name), queue.ids, anchors.ids, mask_same_image=mask_same_image)
            contrast = contrast_similarities(
                positive,
                jnp.where(allowed, similarities, -jnp.inf),
                temperature=temperature,
                hardness=hardness,
                select=select,
                k=k,
                rngs=anchors.rngs,
                axis_name=axis_name,
            )
            return contrast.loss.sum(), contrast

        differentiated = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, contrast), (by_positive, by_similarity) = differentiated(positive, similarities)
        return summarize(contrast, anchors.labels, queue.labels), by_positive, by_similarity

    def block(rows: Rows, *, cache_bytes: int) -> tuple[QueueContrast, jax.Array, jax.Array]:
        """The contrast, and the derivatives of each loss by its positive [b] and by its anchor through the slots."""
        anchors, embeddings, positive = rows
        compared = anchors, positive, cosine(embeddings, queue.keys)
        summary, by_positive, by_similarity = _in_parts(lambda part: contrast(*part), compared, queue, cache_bytes)
        return summary, by_positive, jnp.matmul(by_similarity, queue.keys, precision=jax.lax.Precision.HIGHEST)

    def blocks(rows: Rows, *, block_bytes: int, cache_bytes: int) -> tuple[QueueContrast, jax.Array, jax.Array]:
        return _in_parts(partial(block, cache_bytes=cache_bytes), rows, queue, block_bytes)

    held, held_positives = jax.lax.stop_gradient((embeddings, positives))
    positive = (held * held_positives).sum(axis=1)
    if axis_name is None:
        contrasts, by_positive, by_anchor = jax.lax.platform_dependent(
            (anchors, held, positive),
            cpu=partial(blocks, block_bytes=CPU_BLOCK_BYTES, cache_bytes=CPU_CACHE_BYTES),
            tpu=partial(blocks, block_bytes=TPU_BLOCK_BYTES, cache_bytes=TPU_BLOCK_BYTES),
            default=partial(blocks, block_bytes=GPU_BLOCK_BYTES, cache_bytes=GPU_BLOCK_BYTES),
        )
    else:
        everyone = jax.lax.all_gather((anchors._replace(rngs=None), held, positive), axis_name, tiled=True)
        of_slots = blocks(everyone, block_bytes=SHARDED_BLOCK_BYTES, cache_bytes=SHARDED_BLOCK_BYTES)
        loss = of_slots[0].loss  # complete on every device; the other values are summed over the devices
        contrasts, by_positive, by_anchor = jax.lax.psum_scatter(of_slots, axis_name, tiled=True)
        own = jax.lax.axis_index(axis_name) * positive.shape[0]
        own_loss = jax.lax.dynamic_slice_in_dim(loss, own, positive.shape[0])
        contrasts = contrasts._replace(loss=own_loss, positive=positive)
    by_anchor += by_positive[:, None] * held_positives
    loss = _with_gradient(contrasts.loss, embeddings, by_anchor)
    loss = _with_gradient(loss, positives, by_positive[:, None] * held)
    return contrasts._replace(loss=loss)


def _in_parts(function: Callable[[Any], Any], rows: Any, queue: Queue, most_bytes: int) -> Any:
    """Applies a function to all rows, in parts whose similarities with the queue take at most `most_bytes`."""
    count = jax.tree.leaves(rows)[0].shape[0]
    size = _largest_divisor(count, most_bytes // (4 * queue.size))
    if size == count:
        return function(rows)
    parts = jax.tree.map(lambda values: values.reshape(-1, size, *values.shape[1:]), rows)
    return jax.tree.map(lambda values: values.reshape(count, *values.shape[2:]), jax.lax.map(function, parts))


def _with_gradient(values: jax.Array, inputs: jax.Array, gradients: jax.Array) -> jax.Array:
    """Gives values [B] a gradient: the derivative of value i by row i of inputs [B, D] is row i of gradients [B, D]."""
    linear = (inputs * jax.lax.stop_gradient(gradients)).sum(axis=1)
    return values + (linear - jax.lax.stop_gradient(linear))


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`, or 1."""
    return max(size for size in range(1, max(min(number, most), 1) + 1) if number % size == 0)


def summarize(contrast: Contrast, labels: jax.Array, slot_labels: jax.Array) -> QueueContrast:
    """Summarizes the contrast of each anchor; `labels` [B] are the anchors' classes, `slot_labels` [K] the slots'."""
    chosen = contrast.selection.chosen
    classes = contrast.selection.take(slot_labels)
    comparable = chosen & (classes != UNKNOWN) & (labels[:, None] != UNKNOWN)

    def total(values: jax.Array) -> jax.Array:
        return values.sum(axis=1, dtype=jnp.float32)

    return QueueContrast(
        loss=contrast.loss,
        positive=contrast.positive,
        negatives=total(chosen),
        similarity=total(jnp.where(chosen, contrast.selection.similarities, 0.0)),
        same_class=total(comparable & (classes == labels[:, None])),
        comparable=total(comparable),
    )
