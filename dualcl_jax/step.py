"""One training step, as each device takes it. With `losses.py` this is the method.

In MoCo's own order (1911.05722, Algorithm 1): move the momentum encoder towards the online encoder, encode, score the
queries against the queue as the last step left it, enqueue this step's keys, update the online encoder.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dualcl_jax.data.loader import Batch
from dualcl_jax.losses import HasLoss, chance_level, dual_view_loss, info_nce
from dualcl_jax.method import randomness
from dualcl_jax.method.accumulate import average_gradient, join, split
from dualcl_jax.method.build import Method
from dualcl_jax.method.diagnostics import measure
from dualcl_jax.method.encode import encode, encode_keys, in_global_order
from dualcl_jax.method.negatives.queue import Queue, batch_queue, enqueue
from dualcl_jax.method.negatives.queue_loss import Anchors, QueueContrast, contrast_with_queue, summarize
from dualcl_jax.method.state import TrainState, Variables
from dualcl_jax.method.views.images import make_views
from dualcl_jax.system.devices import AXIS


class Rows(NamedTuple):
    """What the loss knows of anchors [b]: their place in the global batch, image, class, and key to draw with."""

    positions: jax.Array
    ids: jax.Array
    labels: jax.Array
    draws: jax.Array


def train_step(method: Method, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of one device; runs under a mapped axis named `AXIS`.

    Returns:
      The next state, the same on every device but for the slots of a sharded queue, and scalar metrics, averaged over
      devices. Where a number in them is not finite, `train/finite` is False and the next state is this one, a step
      later.
    """
    momentum = method.ema(state.step)
    online = {part: state.params[part] for part in state.momentum_params}  # without the predictor
    momentum_params = jax.tree.map(
        lambda xi, theta: momentum * xi + (1.0 - momentum) * theta, state.momentum_params, online
    )

    rngs = randomness.example_keys(method.seed, randomness.VIEWS, state.step, batch.positions)
    view_1, view_2 = make_views(rngs, batch.examples, method.views, method.image_size)
    query_views = jnp.stack([view_1, view_2]) if method.symmetric else view_1[None]
    key_views = jnp.stack([view_2, view_1]) if method.symmetric else view_2[None]

    momentum_variables = {'params': momentum_params, 'batch_stats': state.momentum_batch_stats}
    keys, momentum_batch_stats = encode_keys(method, momentum_variables, key_views)

    order = jnp.argsort(jax.lax.all_gather(batch.positions, AXIS, tiled=True))
    everyone = in_global_order(jnp.stack([batch.positions, batch.ids, batch.labels], axis=1), order)
    global_keys = in_global_order(keys.swapaxes(0, 1), order)
    if state.queue is None:  # each view order against the other keys of its own
        candidates = [
            batch_queue(global_keys[:, v], everyone[:, 1], everyone[:, 2], state.step) for v in range(keys.shape[0])
        ]
    else:
        candidates = [state.queue] * keys.shape[0]
    count = method.num_negatives if method.count_negatives is None else method.count_negatives(state.step)
    draws = randomness.example_keys(method.seed, randomness.NEGATIVES, state.step, batch.positions)

    def others(rows: Rows) -> jax.Array:
        """[b, B] bool: which of the batch may be negatives of an anchor."""
        allowed = rows.positions[:, None] != everyone[None, :, 0]
        if method.mask_same_image:
            allowed &= rows.ids[:, None] != everyone[None, :, 1]
        return allowed

    def contrast(queue: Queue, rows: Rows, anchors: jax.Array, positives: jax.Array) -> QueueContrast:
        if state.queue is not None:
            return contrast_with_queue(
                Anchors(anchors, positives, rows.ids, rows.labels, rows.draws),
                queue,
                temperature=method.temperature,
                hardness=method.hardness,
                select=method.select,
                k=count,
                mask_same_image=method.mask_same_image,
                axis_name=method.queue_axis,
            )
        among_keys = info_nce(
            anchors,
            positives,
            queue.keys,
            others(rows),
            temperature=method.temperature,
            hardness=method.hardness,
            select=method.select,
            k=count,
            rngs=rows.draws,
        )
        return summarize(among_keys, rows.labels, queue.labels)

    def key_contrast(rows: Rows, key: jax.Array, query: jax.Array) -> HasLoss:
        if method.key_term == 'queue':
            return contrast(candidates[0], rows, key, query)
        return info_nce(key, query, in_global_order(query, order), others(rows), temperature=method.temperature)

    def loss_fn(params: dict, batch_stats: Variables, part: tuple) -> tuple[jax.Array, tuple]:
        views, keys, rows = part
        queries, batch_stats = encode(method, {'params': params, 'batch_stats': batch_stats}, views, predict=True)
        loss, contrasts = dual_view_loss(
            queries,
            keys,
            [partial(contrast, queue, rows) for queue in candidates],
            partial(key_contrast, rows),
            method.key_weight,
        )
        return method.loss_scale * loss, (batch_stats, (loss, queries, contrasts))

    rows = Rows(batch.positions, batch.ids, batch.labels, draws)
    if method.accumulate_steps == 1:
        (_, (batch_stats, (loss, queries, contrasts))), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, (query_views, keys, rows)
        )
    else:
        views_by_part, keys_by_part = (
            split(stacked, method.accumulate_steps, axis=1) for stacked in (query_views, keys)
        )
        rows_by_part = jax.tree.map(lambda column: split(column, method.accumulate_steps), rows)
        gradients, batch_stats, (losses, queries, contrasts) = average_gradient(
            loss_fn, state.params, state.batch_stats, (views_by_part, keys_by_part, rows_by_part)
        )
        loss, queries, contrasts = losses.mean(), join(queries, axis=1), jax.tree.map(join, contrasts)
    gradients = jax.lax.pmean(gradients, AXIS)
    updates, opt_state = method.optimizer.update(gradients, state.opt_state, state.params)

    views, queue = keys.shape[0], state.queue
    if queue is not None:
        ids, labels = (jnp.repeat(everyone[:, column], views) for column in (1, 2))
        queue = enqueue(queue, global_keys.reshape(-1, method.dim), ids, labels, state.step, method.queue_axis)
    next_state = TrainState(
        step=state.step + 1,
        params=jax.tree.map(jnp.add, state.params, updates),
        batch_stats=batch_stats,
        momentum_params=momentum_params,
        momentum_batch_stats=momentum_batch_stats,
        opt_state=opt_state,
        queue=queue,
    )
    labels = batch.labels if method.queue_axis is None else everyone[:, 2]
    chance = chance_level(jnp.concatenate([view.negatives for view in contrasts]))
    if method.key_weight and method.key_term == 'batch':
        chance_of_keys = chance_level(others(rows).sum(axis=1))
        chance = (1.0 - method.key_weight) * chance + method.key_weight * chance_of_keys
    metrics = measure(
        loss, chance, queries, contrasts, gradients, labels, candidates[0], state.step, AXIS, method.queue_axis
    )
    metrics |= {'train/learning_rate': method.learning_rate(state.step), 'train/ema_momentum': momentum}
    if method.count_negatives is not None:
        metrics['train/negatives'] = method.count_negatives(state.step).astype(jnp.float32)
    finite = all_finite((metrics['train/loss'], metrics['train/gradient_norm'], next_state))
    metrics['train/finite'] = jax.lax.pmin(finite, AXIS)
    return choose(metrics['train/finite'], next_state, passed_over(state)), metrics


def all_finite(tree: Any) -> jax.Array:
    """[] bool: whether every floating-point number of a tree is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def passed_over(state: TrainState) -> TrainState:
    """The state after a batch that was not learnt from: only the counts go on, so that schedules follow the step."""
    step = state.step + 1
    return dataclasses.replace(state, step=step, opt_state=optax.tree.set(state.opt_state, count=step))


def choose(first: jax.Array, tree: Any, other: Any) -> Any:
    """One of two trees of like shapes, by a [] bool: a branch, that compiles faster than a select of each leaf."""
    return jax.lax.cond(first, lambda: tree, lambda: other)
