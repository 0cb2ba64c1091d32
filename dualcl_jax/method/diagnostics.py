"""Metrics of one step: scalars, averaged over the devices in one collective. None of them affects the loss."""

import jax
import jax.numpy as jnp

from dualcl_jax.method.contrast import Comparison
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, mean_age, total_size
from dualcl_jax.system.devices import AXIS


def measure(
    compared: Comparison, labels: jax.Array, queue: Queue, step: jax.Array, queue_axis: str | None = None
) -> dict[str, jax.Array]:
    """Computes the metrics of one step, under the mapped axis.

    Args:
      compared: the result of comparing this device's anchors.
      labels: [b] int32, the anchors' classes, or -1; with a sharded queue, [B] for the anchors of all devices.
      queue: the queue that the loss used, before this step's keys enter it.
      step: [] int32.
      queue_axis: the mapped axis that the queue is sharded over; None if every device holds all of it.

    Returns:
      Float32 scalars by name:
      - train/loss;
      - train/loss_chance: the loss of an encoder that cannot tell the positive from the negatives;
      - train/positive_similarity: the mean cosine of query and positive;
      - train/negative_similarity: the mean cosine of query and selected negatives; NaN if there are none;
      - train/false_negative_rate: the share of the selected negatives that are of the anchor's class; NaN without
        labels or negatives;
      - train/same_class_rate: the same share over every key of the queue;
      - train/feature_std: 1 if the queries are spread evenly over the sphere, 0 if they collapse to a point;
      - train/effective_rank, in [1, D]: the participation ratio of the queries' second moment, 1 / ‖E[q qᵀ]‖²_F;
      - queue/fill, in [0, 1], and queue/age, in steps.
    """
    flat = compared.queries.reshape(-1, compared.queries.shape[-1])
    contrast = jax.tree.map(lambda *views: jnp.concatenate(views), *compared.contrasts)
    in_queue = (queue.labels[None, :] == labels[:, None]) & (labels[:, None] != UNKNOWN)
    known = (queue.labels[None, :] != UNKNOWN) & (labels[:, None] != UNKNOWN)

    sums = jax.lax.pmean(
        {
            'loss': compared.loss,
            'chance': compared.chance,
            'positive': contrast.positive.mean(),
            'similarity': contrast.similarity.sum(),
            'chosen': contrast.negatives.sum(),
            'selected_same': contrast.same_class.sum(),
            'selected_known': contrast.comparable.sum(),
            'queue_same': in_queue.sum(axis=1).astype(jnp.float32).sum(),  # the total may exceed int32
            'queue_known': known.sum(axis=1).astype(jnp.float32).sum(),
            'first': flat.mean(axis=0),
            'second': jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST) / flat.shape[0],
        },
        AXIS,
    )
    variance = jnp.diagonal(sums['second']) - sums['first'] ** 2
    return {
        'train/loss': sums['loss'],
        'train/loss_chance': sums['chance'],
        'train/positive_similarity': sums['positive'],
        'train/negative_similarity': sums['similarity'] / sums['chosen'],
        'train/false_negative_rate': sums['selected_same'] / sums['selected_known'],
        'train/same_class_rate': sums['queue_same'] / sums['queue_known'],
        'train/feature_std': jnp.sqrt(jnp.maximum(variance, 0.0).mean() * flat.shape[1]),
        'train/effective_rank': 1.0 / (sums['second'] ** 2).sum(),
        'queue/fill': queue.filled.astype(jnp.float32) / total_size(queue, queue_axis),
        'queue/age': mean_age(queue, step, queue_axis),
    }
