"""The loss of one step: its anchors against the negatives of the queue, or of the batch where there is no queue."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dualcl_jax.losses import HasLoss, chance_level, dual_view_loss, info_nce
from dualcl_jax.method.build import Method
from dualcl_jax.method.encode import in_global_order
from dualcl_jax.method.negatives.queue import Queue, batch_queue
from dualcl_jax.method.negatives.queue_loss import Anchors, QueueContrast, contrast_with_queue, summarize
from dualcl_jax.system.devices import AXIS


class Candidates(NamedTuple):
    """What the anchors of one step are compared with, the same on every device but for a sharded queue.

    Attributes:
      queues: for each view order, the keys to select from: the memory queue, or the other keys of that view order.
      k: how many negatives to select; an int, or [] int32 that a schedule gives.
      order: [B] int32, for each position in the global batch the place of its row among those of all devices.
      everyone: the global batch, in its order; without keys to draw with.
      keys: [B, V, D] of the global batch, in its order.
    """

    queues: tuple[Queue, ...]
    k: int | jax.Array
    order: jax.Array
    everyone: Anchors
    keys: jax.Array


class Comparison(NamedTuple):
    """What a step learns from comparing b anchors.

    Attributes:
      loss: [] float32, mean over view orders and anchors.
      chance: [] float32, the loss of an encoder that cannot tell the positive from the negatives.
      queries: [V, b, D] unit vectors.
      contrasts: query-anchored, one for each view order.
    """

    loss: jax.Array
    chance: jax.Array
    queries: jax.Array
    contrasts: list[QueueContrast]


def gather_candidates(
    method: Method, queue: Queue | None, keys: jax.Array, anchors: Anchors, step: jax.Array
) -> Candidates:
    """The candidates of one step, from every device's keys [V, b, D] and anchors [b]."""
    order = jnp.argsort(jax.lax.all_gather(anchors.positions, AXIS, tiled=True))
    columns = in_global_order(jnp.stack(anchors[:3], axis=1), order)
    everyone = Anchors(columns[:, 0], columns[:, 1], columns[:, 2], None)
    global_keys = in_global_order(keys.swapaxes(0, 1), order)
    count = keys.shape[0]
    if queue is None:
        queues = [batch_queue(global_keys[:, v], everyone.ids, everyone.labels, step) for v in range(count)]
    else:
        queues = [queue] * count
    k = method.num_negatives if method.count_negatives is None else method.count_negatives(step)
    return Candidates(tuple(queues), k, order, everyone, global_keys)


def compare(
    method: Method, candidates: Candidates, queries: jax.Array, keys: jax.Array, anchors: Anchors
) -> Comparison:
    """The dual-view loss of b anchors: queries [V, b, D] against their positives, keys [V, b, D], and negatives."""
    allowed = _others(method, candidates.everyone, anchors)
    loss, contrasts = dual_view_loss(
        queries,
        keys,
        [
            partial(contrast, method, queue, anchors=anchors, k=candidates.k, allowed=allowed)
            for queue in candidates.queues
        ],
        partial(_contrast_keys, method, candidates, anchors, allowed),
        method.key_weight,
    )
    chance = chance_level(jnp.concatenate([view.negatives for view in contrasts]))
    if method.key_weight and method.key_term == 'batch':
        chance = (1.0 - method.key_weight) * chance + method.key_weight * chance_level(allowed.sum(axis=1))
    return Comparison(loss, chance, queries, contrasts)


def contrast(
    method: Method,
    queue: Queue,
    embeddings: jax.Array,
    positives: jax.Array,
    *,
    anchors: Anchors,
    k: int | jax.Array,
    allowed: jax.Array | None = None,
) -> QueueContrast:
    """InfoNCE of anchors [b, D] against positives [b, D] and the negatives that the method selects.

    They come from the memory queue, or, where the method has none, from the keys of the batch that `queue` then holds:
    those that `allowed` [b, B] names.
    """
    if method.queue_size:
        return contrast_with_queue(
            embeddings,
            positives,
            anchors,
            queue,
            temperature=method.temperature,
            hardness=method.hardness,
            select=method.select,
            k=k,
            mask_same_image=method.mask_same_image,
            axis_name=method.queue_axis,
        )
    among_keys = info_nce(
        embeddings,
        positives,
        queue.keys,
        allowed,
        temperature=method.temperature,
        hardness=method.hardness,
        select=method.select,
        k=k,
        rngs=anchors.rngs,
    )
    return summarize(among_keys, anchors.labels, queue.labels)


def _contrast_keys(
    method: Method, candidates: Candidates, anchors: Anchors, allowed: jax.Array, keys: jax.Array, queries: jax.Array
) -> HasLoss:
    """The term anchored at the key: its positive is the query, its negatives the queue's or the batch's queries."""
    if method.key_term == 'queue':
        return contrast(method, candidates.queues[0], keys, queries, anchors=anchors, k=candidates.k, allowed=allowed)
    return info_nce(keys, queries, in_global_order(queries, candidates.order), allowed, temperature=method.temperature)


def _others(method: Method, everyone: Anchors, anchors: Anchors) -> jax.Array:
    """[b, B] bool: which examples of the global batch may be negatives of which anchor."""
    allowed = anchors.positions[:, None] != everyone.positions[None, :]
    if method.mask_same_image:
        allowed &= anchors.ids[:, None] != everyone.ids[None, :]
    return allowed
