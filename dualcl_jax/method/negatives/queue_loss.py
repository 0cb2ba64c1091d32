"""InfoNCE against the queue, a block of anchors at a time: the similarities [B, K] are never held as a whole.

An anchor's loss depends on its own row alone. So the gradient is taken block by block while the block's similarities
are at hand, and what remains of [b, K] is [b, D]. Ours; the loss is `dualcl_jax.losses.info_nce`.

With a sharded queue the keys stay where they are and the anchors travel: every device scores the anchors of all devices
against its own slots. What is exchanged are anchors and gradients [B, D] and some sums of each anchor, however long the
queue.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dualcl_jax.losses import Contrast, Selector, contrast_similarities, cosine
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, valid
from dualcl_jax.method.negatives.selectors import allowed_slots

BLOCK_BYTES = 4 * 2**20
"""Of a block's similarities, on accelerators."""
CPU_BLOCK_BYTES = 64 * 2**20
"""The same on CPUs, where a product of few anchors with many keys is slow: at 16 MiB the head takes a sixth longer."""
CPU_CACHE_BYTES = 256 * 2**10
"""Of similarities that go through selection and loss together on CPUs: they stay in a core's cache."""
SHARDED_BLOCK_BYTES = 64 * 2**20
"""Of a block's similarities with the slots of one device: each block takes about ten collectives."""


class Anchors(NamedTuple):
    """B anchors with what their loss needs, all with a leading axis B.

    Attributes:
      anchors: [B, D] unit vectors.
      positives: [B, D] unit vectors.
      ids: [B] int32, images.
      labels: [B] int32, classes, or -1.
      rngs: [B] keys of random selectors.
    """

    anchors: jax.Array
    positives: jax.Array
    ids: jax.Array
    labels: jax.Array
    rngs: jax.Array


class _Compared(NamedTuple):
    """What the slots of a device are told of B anchors: `Anchors` with `positive` [B], the cosine to the positive."""

    anchors: jax.Array
    positive: jax.Array
    ids: jax.Array
    labels: jax.Array
    rngs: jax.Array | None


class QueueContrast(NamedTuple):
    """B anchors against their positives and the negatives selected from the queue; each [B] float32.

    Attributes:
      loss: at least 0; 0 where an anchor has no negative.
      positive: cosine similarity of anchor and positive.
      negatives: how many were selected.
      similarity: sum of their similarities.
      same_class: how many of them are of the anchor's class.
      comparable: of how many that can be said.
    """

    loss: jax.Array
    positive: jax.Array
    negatives: jax.Array
    similarity: jax.Array
    same_class: jax.Array
    comparable: jax.Array


def contrast_with_queue(
    rows: Anchors,
    queue: Queue,
    *,
    temperature: float,
    hardness: float = 0.0,
    select: Selector,
    k: int | jax.Array,
    mask_same_image: bool,
    axis_name: str | None = None,
) -> QueueContrast:
    """`info_nce` of each anchor against its positive and the negatives selected from the queue.

    The gradient reaches anchors and positives, not the queue; it can be taken once (no second derivative).

    Args:
      rows: the anchors.
      queue: K keys, or this device's part of a sharded queue.
      temperature: τ > 0.
      hardness: β >= 0 of `dualcl_jax.losses.cross_entropy`.
      select: a selector of `dualcl_jax.method.negatives.selectors`; for a sharded queue, one that knows the axis.
      k: how many negatives to select.
      mask_same_image: leave out older keys of the anchor's own image.
      axis_name: of the devices that a sharded queue lies on; each brings as many anchors.
    """
    queue = jax.lax.stop_gradient(queue)

    def contrast(rows: _Compared, similarities: jax.Array) -> tuple[QueueContrast, jax.Array, jax.Array]:
        """With the derivatives of each loss by its positive similarity [b] and by its similarities [b, K]."""

        def loss(positive: jax.Array, similarities: jax.Array) -> tuple[jax.Array, Contrast]:
            allowed = allowed_slots(valid(queue, axis_name), queue.ids, rows.ids, mask_same_image=mask_same_image)
            contrast = contrast_similarities(
                positive,
                jnp.where(allowed, similarities, -jnp.inf),
                temperature=temperature,
                hardness=hardness,
                select=select,
                k=k,
                rngs=rows.rngs,
                axis_name=axis_name,
            )
            return contrast.loss.sum(), contrast

        differentiated = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, contrast), (by_positive, by_similarity) = differentiated(rows.positive, similarities)
        return summarize(contrast, rows.labels, queue.labels), by_positive, by_similarity

    def block(rows: _Compared, *, cache_bytes: int) -> tuple[QueueContrast, jax.Array, jax.Array]:
        """With the derivatives of each loss by its positive similarity [b], and by its anchor as met by the slots."""
        similarities = cosine(rows.anchors, queue.keys)
        summary, by_positive, by_similarity = _in_parts(lambda part: contrast(*part), (rows, similarities), cache_bytes)
        return summary, by_positive, jnp.matmul(by_similarity, queue.keys, precision=jax.lax.Precision.HIGHEST)

    def blocks(rows: _Compared, *, block_bytes: int, cache_bytes: int) -> tuple[QueueContrast, jax.Array, jax.Array]:
        return _in_parts(partial(block, cache_bytes=cache_bytes), rows, block_bytes)

    def _in_parts(function: Callable[[Any], Any], rows: Any, most_bytes: int) -> Any:
        """The function of all rows, as many at a time as have similarities of so many bytes."""
        count = jax.tree.leaves(rows)[0].shape[0]
        size = _largest_divisor(count, most_bytes // (4 * queue.size))
        if size == count:
            return function(rows)
        parts = jax.tree.map(lambda values: values.reshape(-1, size, *values.shape[1:]), rows)
        return jax.tree.map(lambda values: values.reshape(count, *values.shape[2:]), jax.lax.map(function, parts))

    held = jax.lax.stop_gradient(rows)
    compared = _Compared(held.anchors, (held.anchors * held.positives).sum(axis=1), held.ids, held.labels, held.rngs)
    if axis_name is None:
        contrasts, by_positive, by_anchor = jax.lax.platform_dependent(
            compared,
            cpu=partial(blocks, block_bytes=CPU_BLOCK_BYTES, cache_bytes=CPU_CACHE_BYTES),
            default=partial(blocks, block_bytes=BLOCK_BYTES, cache_bytes=BLOCK_BYTES),
        )
    else:
        everyone = jax.lax.all_gather(compared._replace(rngs=None), axis_name, tiled=True)
        of_slots = blocks(everyone, block_bytes=SHARDED_BLOCK_BYTES, cache_bytes=SHARDED_BLOCK_BYTES)
        loss = of_slots[0].loss  # whole on every device; the rest are shares to be summed
        contrasts, by_positive, by_anchor = jax.lax.psum_scatter(of_slots, axis_name, tiled=True)
        own = jax.lax.axis_index(axis_name) * compared.positive.shape[0]
        contrasts = contrasts._replace(
            loss=jax.lax.dynamic_slice_in_dim(loss, own, compared.positive.shape[0]), positive=compared.positive
        )
    by_anchor += by_positive[:, None] * held.positives
    loss = _with_gradient(contrasts.loss, rows.anchors, by_anchor)
    loss = _with_gradient(loss, rows.positives, by_positive[:, None] * held.anchors)
    return contrasts._replace(loss=loss)


def _with_gradient(values: jax.Array, inputs: jax.Array, gradients: jax.Array) -> jax.Array:
    """[B] values whose derivative by row i of inputs [B, D] is row i of gradients [B, D]."""
    linear = (inputs * jax.lax.stop_gradient(gradients)).sum(axis=1)
    return values + (linear - jax.lax.stop_gradient(linear))


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor that is at most `most`, and at least 1."""
    return max(size for size in range(1, max(min(number, most), 1) + 1) if number % size == 0)


def summarize(contrast: Contrast, labels: jax.Array, slot_labels: jax.Array) -> QueueContrast:
    """What is told about each anchor [B] of `labels` whose negatives are slots of classes `slot_labels` [K]."""
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
