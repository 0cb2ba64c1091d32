"""InfoNCE against the queue, one block of anchors at a time: the similarities [B, K] are never stored as a whole.

An anchor's loss depends only on its own row of similarities. So each block computes its gradient together with its
loss, and keeps [b, D] instead of [b, K]. Ours; the loss is `dualcl_jax.losses.info_nce`.

With a sharded queue the keys stay on their devices, and each device compares the anchors of all devices with its own
slots. The devices exchange only anchors and gradients [B, D] and a few sums for each anchor, however long the queue is.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dualcl_jax.losses import Contrast, Selection, Selector, contrast_similarities, cosine
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, valid
from dualcl_jax.method.negatives.selectors import allowed_slots


class Blocks(NamedTuple):
    """The sizes of the blocks of anchors. The product of a block with the keys reads the queue once.

    Attributes:
      bytes: the size of a block's similarities.
      least: the smallest number of anchors in a block, if there are as many, whatever its bytes.
      part_bytes: the size of the similarities that one call of the selector and the loss processes; None for all
        similarities of a block.
      closed_form: whether the loss and its derivatives are computed by `_Loss.in_closed_form` where it has one.
        Otherwise the maximum of the softmax, and the derivative by the positive as the sum of the others, each take one
        more pass over the similarities.
    """

    bytes: int
    least: int
    part_bytes: int | None = None
    closed_form: bool = False


LARGEST_EXPONENT = 88.0
"""exp(x) is finite in float32 up to about this x."""
TPU = Blocks(32 * 2**20, 128, closed_form=True)
"""Similarities of 32 MiB stay in a TPU's vector memory. By libtpu's cycles, 64 anchors with 1,048,576 keys take 3.9 ms
in one block and 0.8 ms for each pass of the search; in blocks of 4 MiB, one anchor each, they take over 200 ms
(`experiments/results/blocks.json`)."""
GPU = Blocks(256 * 2**20, 64)
"""GPUs and other accelerators. On an H200, 256 anchors with 65,536 keys and the hardest quarter take 0.5 ms in one
block and 2.0 ms in blocks of 4 MiB; 4,096 anchors take 5.9 ms, and 7.2 ms in blocks of 64 MiB
(`experiments/results/gpu`; without the passes of the search)."""
CPU = Blocks(64 * 2**20, 1, 128 * 2**10)
"""On CPUs a product of few anchors with many keys is slow: in blocks of 16 MiB the head takes a sixth longer. The parts
fit into a core's cache. XLA divides an operation on more than 256 KiB of inputs and outputs among threads. For such
short operations this costs more than it saves: with parts of 256 KiB the head takes 1.4 times as long on two busy cores
(4,096 keys, the hardest quarter)."""
SHARDED = Blocks(64 * 2**20, 128)
"""For the slots of a sharded queue on one device. Each block needs about ten collectives."""


class Anchors(NamedTuple):
    """The metadata of B anchors; each [B].

    Attributes:
      positions: int32, positions in the global batch.
      ids: int32, the ids of the examples.
      labels: int32, classes, or -1.
      rngs: random keys, for a selector that draws at random; None if they are not available.
    """

    positions: jax.Array
    ids: jax.Array
    labels: jax.Array
    rngs: jax.Array | None


Rows = tuple[Anchors, jax.Array, jax.Array]
"""Anchors, their embeddings [B, D], and the cosine [B] of each anchor with its positive."""
Compared = tuple[Anchors, jax.Array, jax.Array]
"""Anchors, their similarities with their positives [b], and those with all slots [b, K]."""


class QueueContrast(NamedTuple):
    """B anchors against their positives and the negatives selected from the queue; each [B] float32.

    Attributes:
      loss: at least 0; 0 for an anchor without negatives.
      positive: the cosine similarity of anchor and positive.
      negatives: the number of selected negatives.
      similarity: the sum of their similarities.
      same_class: the number of selected negatives of the anchor's class.
      comparable: the number of selected negatives for which both classes are known.
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
    allowed: Callable[[Anchors], jax.Array] | None = None,
    axis_name: str | None = None,
) -> QueueContrast:
    """Computes `info_nce` of each anchor with its positive and the negatives selected from the queue.

    The gradient flows to anchors and positives, not to the queue. There is no second derivative.

    Args:
      embeddings: [B, D] unit vectors of the anchors.
      positives: [B, D] unit vectors; row i is the positive of anchor i.
      anchors: the metadata of the anchors.
      queue: K keys, or this device's part of a sharded queue.
      temperature: τ > 0.
      hardness: β >= 0 of `dualcl_jax.losses.cross_entropy`.
      select: a selector of `dualcl_jax.method.negatives.selectors`; a sharded queue needs one built for its axis.
      k: how many negatives to select.
      allowed: marks which keys of `queue` may be negatives of each of n anchors, [n, K] bool; by default all keys of
        other images.
      axis_name: the axis of the devices that a sharded queue lies on; each of them has equally many anchors.
    """
    queue = jax.lax.stop_gradient(queue)
    if allowed is None:
        allowed = partial(_of_other_images, queue, axis_name)
    loss = _Loss(queue, temperature, hardness, select, k, allowed, axis_name)
    held, held_positives = jax.lax.stop_gradient((embeddings, positives))
    positive = (held * held_positives).sum(axis=1)
    if axis_name is None:
        contrasts, by_positive, by_anchor = jax.lax.platform_dependent(
            (anchors, held, positive),
            cpu=partial(loss.in_blocks, sizes=CPU),
            tpu=partial(loss.in_blocks, sizes=TPU),
            default=partial(loss.in_blocks, sizes=GPU),
        )
    else:
        everyone = jax.lax.all_gather((anchors._replace(rngs=None), held, positive), axis_name, tiled=True)
        of_slots = loss.in_blocks(everyone, sizes=SHARDED)
        losses = of_slots[0].loss  # complete on every device; the other values are summed over the devices
        contrasts, by_positive, by_anchor = jax.lax.psum_scatter(of_slots, axis_name, tiled=True)
        own = jax.lax.axis_index(axis_name) * positive.shape[0]
        own_loss = jax.lax.dynamic_slice_in_dim(losses, own, positive.shape[0])
        contrasts = contrasts._replace(loss=own_loss, positive=positive)
    by_anchor += by_positive[:, None] * held_positives
    losses = _with_gradient(contrasts.loss, embeddings, by_anchor)
    return contrasts._replace(loss=_with_gradient(losses, positives, by_positive[:, None] * held))


def _of_other_images(queue: Queue, axis_name: str | None, anchors: Anchors) -> jax.Array:
    return allowed_slots(valid(queue, axis_name), queue.ids, anchors.ids, mask_same_image=True)


class _Loss(NamedTuple):
    """The loss of anchors against a queue and its derivatives; the fields are arguments of `contrast_with_queue`."""

    queue: Queue
    temperature: float
    hardness: float
    select: Selector
    k: int | jax.Array
    allowed: Callable[[Anchors], jax.Array]
    axis_name: str | None

    @property
    def has_closed_form(self) -> bool:
        """Whether the sum of exp((s - positive) / τ) over all slots cannot overflow; cosines differ by at most 2."""
        largest = 2.0 / self.temperature + math.log(self.queue.size)
        return largest < LARGEST_EXPONENT and not self.hardness and self.axis_name is None

    def mask(self, similarities: jax.Array, anchors: Anchors) -> jax.Array:
        """Similarities [b, K] with the slots, -inf where an anchor may not use a slot."""
        return jnp.where(self.allowed(anchors), similarities, -jnp.inf)

    def differentiate(self, part: Compared) -> tuple[Contrast, jax.Array, jax.Array]:
        """Computes the contrast, and the derivatives of each loss by its positive [b] and its similarities [b, K]."""
        anchors, positive, similarities = part

        def loss(positive: jax.Array, similarities: jax.Array) -> tuple[jax.Array, Contrast]:
            contrast = contrast_similarities(
                positive,
                self.mask(similarities, anchors),
                temperature=self.temperature,
                hardness=self.hardness,
                select=self.select,
                k=self.k,
                rngs=anchors.rngs,
                axis_name=self.axis_name,
            )
            return contrast.loss.sum(), contrast

        differentiated = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, contrast), (by_positive, by_similarity) = differentiated(positive, similarities)
        return contrast, by_positive, by_similarity

    def in_closed_form(self, part: Compared) -> tuple[Contrast, jax.Array, jax.Array]:
        """Computes `differentiate` where the loss `has_closed_form`: log(1 + Σ exp((s - positive) / τ)).

        Its derivatives are the shares of the softmax, divided by τ; that of the positive is 1 lower.
        """
        anchors, positive, similarities = part

        def selected(similarities: jax.Array) -> tuple[jax.Array, Selection]:
            selection = self.select(self.mask(similarities, anchors), self.k, anchors.rngs)
            return selection.similarities, selection

        negatives, pull_back, selection = jax.vjp(selected, similarities, has_aux=True)
        margins = (negatives - positive[:, None]) / self.temperature
        loss = jnp.log1p(jnp.exp(margins).sum(axis=1))
        (by_similarity,) = pull_back(jnp.exp(margins - loss[:, None]) / self.temperature)
        return Contrast(loss, positive, selection), jnp.expm1(-loss) / self.temperature, by_similarity

    def of_part(self, part: Compared, *, closed_form: bool) -> tuple[QueueContrast, jax.Array, jax.Array]:
        """Summarizes the contrast of `differentiate`, and passes on its derivatives."""
        contrast, by_positive, by_similarity = (self.in_closed_form if closed_form else self.differentiate)(part)
        return summarize(contrast, part[0].labels, self.queue.labels), by_positive, by_similarity

    def of_block(self, rows: Rows, *, sizes: Blocks) -> tuple[QueueContrast, jax.Array, jax.Array]:
        """Computes the contrast, and each loss's derivatives by its positive [b] and its anchor through the slots."""
        anchors, embeddings, positive = rows
        similarities = cosine(embeddings, self.queue.keys)
        of_part = partial(self.of_part, closed_form=sizes.closed_form and self.has_closed_form)
        part_bytes = sizes.part_bytes or 4 * similarities.size
        summary, by_positive, by_similarity = _in_parts(
            of_part, (anchors, positive, similarities), self.queue, part_bytes
        )
        return summary, by_positive, jnp.matmul(by_similarity, self.queue.keys, precision=jax.lax.Precision.HIGHEST)

    def in_blocks(self, rows: Rows, *, sizes: Blocks) -> tuple[QueueContrast, jax.Array, jax.Array]:
        """Applies `of_block` to all rows, one block after the other."""
        return _in_parts(partial(self.of_block, sizes=sizes), rows, self.queue, sizes.bytes, sizes.least)


def _in_parts(function: Callable[[Any], Any], rows: Any, queue: Queue, most_bytes: int, least: int = 1) -> Any:
    """Applies a function to all rows, in equal parts of at least `least` rows if there are as many.

    In larger parts, the similarities with the queue take at most `most_bytes`.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    size = part_size(count, most_bytes // (4 * queue.size), least)
    if size == count:
        return function(rows)
    parts = jax.tree.map(lambda values: values.reshape(-1, size, *values.shape[1:]), rows)
    return jax.tree.map(lambda values: values.reshape(count, *values.shape[2:]), jax.lax.map(function, parts))


def _with_gradient(values: jax.Array, inputs: jax.Array, gradients: jax.Array) -> jax.Array:
    """Gives values [B] a gradient: the derivative of value i by row i of inputs [B, D] is row i of gradients [B, D]."""
    linear = (inputs * jax.lax.stop_gradient(gradients)).sum(axis=1)
    return values + (linear - jax.lax.stop_gradient(linear))


def part_size(count: int, most: int, least: int = 1) -> int:
    """The largest divisor of `count` up to `most`; if that is below `least`, the smallest divisor that is not.

    Example:
      >>> part_size(256, most=20), part_size(256, most=1, least=100), part_size(60, most=1, least=100)
      (16, 128, 60)
    """
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    fitting = max((size for size in divisors if size <= most), default=1)
    return fitting if fitting >= least else next((size for size in divisors if size >= least), count)


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
