"""The loss of one step: compares anchors with negatives from the queue, or from the batch if there is no queue."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dualcl_jax.losses import HasLoss, chance_level, dual_view_loss, info_nce
from dualcl_jax.method.build import Method
from dualcl_jax.method.encode import in_global_order
from dualcl_jax.method.negatives.queue import Queue, batch_queue, valid
from dualcl_jax.method.negatives.queue_loss import Anchors, QueueContrast, contrast_with_queue
from dualcl_jax.method.negatives.selectors import allowed_slots
from dualcl_jax.system.devices import AXIS


class Candidates(NamedTuple):
    """The candidates for negatives in one step, the same on every device except for the slots of a sharded queue.

    Attributes:
      queues: for each view order, the keys to select from: the memory queue, or the batch's keys of that view order.
      k: how many negatives to select; an int, or [] int32 from a schedule.
      order: [B] int32, for each position in the global batch the index of its row among the rows of all devices.
      everyone: the anchors of the global batch in its order, without random keys.
      keys: [B, V, D], the keys of the global batch in its order.
    """

    queues: tuple[Queue, ...]
    k: int | jax.Array
    order: jax.Array
    everyone: Anchors
    keys: jax.Array


class Comparison(NamedTuple):
    """The result of comparing b anchors with their positives and negatives.

    Attributes:
      loss: [] float32, the mean over view orders and anchors.
      chance: [] float32, the loss of an encoder that cannot tell the positive from the negatives.
      queries: [V, b, D] unit vectors.
      contrasts: the query-anchored contrast of each view order.
    """

    loss: jax.Array
    chance: jax.Array
    queries: jax.Array
    contrasts: list[QueueContrast]


def gather_candidates(
    method: Method, queue: Queue | None, keys: jax.Array, anchors: Anchors, step: jax.Array
) -> Candidates:
    """Gathers the candidates of one step from the keys [V, b, D] and the anchors [b] of every device."""
    order = jnp.argsort(jax.lax.all_gather(anchors.positions, AXIS, tiled=True))
    columns = jnp.stack([anchors.positions, anchors.ids, anchors.labels], axis=1)
    positions, ids, labels = in_global_order(columns, order).T
    everyone = Anchors(positions, ids, labels, rngs=None)
    global_keys = in_global_order(keys.swapaxes(0, 1), order)
    count = keys.shape[0]
    if queue is None:
        queues = [batch_queue(global_keys[:, v], ids, labels, step) for v in range(count)]
    else:
        queues = [queue] * count
    k = method.num_negatives if method.count_negatives is None else method.count_negatives(step)
    return Candidates(tuple(queues), k, order, everyone, global_keys)


def compare(
    method: Method, candidates: Candidates, queries: jax.Array, keys: jax.Array, anchors: Anchors
) -> Comparison:
    """Computes the dual-view loss of queries [V, b, D] with keys [V, b, D] as positives and the selected negatives."""
    others = _others(method, candidates.everyone.ids, anchors)
    loss, contrasts = dual_view_loss(
        queries,
        keys,
        [partial(contrast, method, queue, anchors=anchors, k=candidates.k) for queue in candidates.queues],
        partial(_contrast_keys, method, candidates, anchors, others),
        method.key_weight,
    )
    chance = chance_level(jnp.concatenate([view.negatives for view in contrasts]))
    if method.key_weight and method.key_term == 'batch':
        chance = (1.0 - method.key_weight) * chance + method.key_weight * chance_level(others.sum(axis=1))
    return Comparison(loss, chance, queries, contrasts)


def contrast(
    method: Method,
    queue: Queue,
    embeddings: jax.Array,
    positives: jax.Array,
    *,
    anchors: Anchors,
    k: int | jax.Array,
) -> QueueContrast:
    """Computes InfoNCE of anchors [b, D] with positives [b, D] and the negatives that the method selects from a queue.

    The queue is one of `Candidates.queues`.
    """
    return contrast_with_queue(
        embeddings,
        positives,
        anchors,
        queue,
        temperature=method.temperature,
        hardness=method.hardness,
        select=method.select,
        k=k,
        allowed=partial(allowed_negatives, method, queue),
        axis_name=method.queue_axis,
    )


def allowed_negatives(method: Method, queue: Queue, anchors: Anchors) -> jax.Array:
    """Marks which keys of one of `Candidates.queues` may be negatives of each anchor, [b, K] bool.

    With a sharded queue the columns are the slots of this device.
    """
    if not method.queue_size:
        return _others(method, queue.ids, anchors)
    slots = valid(queue, method.queue_axis)
    return allowed_slots(slots, queue.ids, anchors.ids, mask_same_image=method.mask_same_image)


def _contrast_keys(
    method: Method, candidates: Candidates, anchors: Anchors, others: jax.Array, keys: jax.Array, queries: jax.Array
) -> HasLoss:
    """Computes the term anchored at the key, with the query as positive and the queue or other queries as negatives."""
    if method.key_term == 'queue':
        return contrast(method, candidates.queues[0], keys, queries, anchors=anchors, k=candidates.k)
    return info_nce(keys, queries, in_global_order(queries, candidates.order), others, temperature=method.temperature)


def _others(method: Method, ids: jax.Array, anchors: Anchors) -> jax.Array:
    """Marks which examples of the global batch, with these ids [B], may be negatives of each anchor, [b, B] bool."""
    allowed = anchors.positions[:, None] != jnp.arange(ids.shape[0], dtype=jnp.int32)[None]
    if method.mask_same_image:
        allowed &= anchors.ids[:, None] != ids[None]
    return allowed
