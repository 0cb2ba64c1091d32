"""One training step, as each device takes it. With `losses.py` this is the method.

In MoCo's own order (1911.05722, Algorithm 1): move the momentum encoder towards the online encoder, encode, score the
queries against the queue as the last step left it, enqueue this step's keys, update the online encoder.
"""

import jax
import jax.numpy as jnp

from dualcl_jax import randomness
from dualcl_jax.data.loader import Batch
from dualcl_jax.diagnostics import measure
from dualcl_jax.losses import HasLoss, dual_view_loss, info_nce, normalize
from dualcl_jax.method import AXIS, Method
from dualcl_jax.queue import enqueue
from dualcl_jax.state import TrainState, Variables
from dualcl_jax.streaming import Anchors, QueueContrast, contrast_with_queue
from dualcl_jax.views import make_views


def train_step(method: Method, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of one device; runs under a mapped axis named `AXIS`.

    Returns:
      The next state, the same on every device, and scalar metrics, averaged over devices.
    """
    momentum = method.ema(state.step)
    momentum_params = jax.tree.map(
        lambda xi, theta: momentum * xi + (1.0 - momentum) * theta, state.momentum_params, state.params
    )

    rngs = randomness.example_keys(method.seed, randomness.VIEWS, state.step, batch.positions)
    view_1, view_2 = make_views(rngs, batch.images, method.views, method.image_size)
    query_views = jnp.stack([view_1, view_2]) if method.symmetric else view_1[None]
    key_views = jnp.stack([view_2, view_1]) if method.symmetric else view_2[None]

    momentum_variables = {'params': momentum_params, 'batch_stats': state.momentum_batch_stats}
    order = jnp.argsort(jax.lax.all_gather(batch.positions, AXIS, tiled=True))
    keys, momentum_batch_stats = encode_keys(method, momentum_variables, key_views, state.step, batch.positions, order)

    everyone = in_global_order(jnp.stack([batch.positions, batch.ids, batch.labels], axis=1), order)
    draws = randomness.example_keys(method.seed, randomness.NEGATIVES, state.step, batch.positions)

    def contrast(anchors: jax.Array, positives: jax.Array) -> QueueContrast:
        return contrast_with_queue(
            Anchors(anchors, positives, batch.ids, batch.labels, draws),
            state.queue,
            temperature=method.temperature,
            select=method.select,
            k=method.num_negatives,
            mask_same_image=method.mask_same_image,
        )

    def key_contrast(key: jax.Array, query: jax.Array) -> HasLoss:
        if method.key_term == 'queue':
            return contrast(key, query)
        others = batch.positions[:, None] != everyone[None, :, 0]
        if method.mask_same_image:
            others = others & (batch.ids[:, None] != everyone[None, :, 1])
        queries = in_global_order(query, order)
        return info_nce(key, query, queries, others, temperature=method.temperature)

    def loss_fn(params: dict) -> tuple[jax.Array, tuple]:
        variables = {'params': params, 'batch_stats': state.batch_stats}
        queries, batch_stats = encode(method, variables, query_views)
        loss, contrasts = dual_view_loss(queries, keys, contrast, key_contrast, method.key_weight)
        return loss, (queries, batch_stats, contrasts)

    (loss, (queries, batch_stats, contrasts)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    gradients = jax.lax.pmean(gradients, AXIS)
    updates, opt_state = method.optimizer.update(gradients, state.opt_state, state.params)

    views = keys.shape[0]
    global_keys = in_global_order(keys.swapaxes(0, 1), order).reshape(-1, method.dim)
    next_state = TrainState(
        step=state.step + 1,
        params=jax.tree.map(jnp.add, state.params, updates),
        batch_stats=batch_stats,
        momentum_params=momentum_params,
        momentum_batch_stats=momentum_batch_stats,
        opt_state=opt_state,
        queue=enqueue(
            state.queue, global_keys, jnp.repeat(everyone[:, 1], views), jnp.repeat(everyone[:, 2], views), state.step
        ),
    )
    metrics = measure(loss, queries, contrasts, gradients, batch.labels, state.queue, state.step, AXIS)
    metrics |= {'train/learning_rate': method.learning_rate(state.step), 'train/ema_momentum': momentum}
    return next_state, metrics


def encode(method: Method, variables: Variables, views: jax.Array) -> tuple[jax.Array, Variables]:
    """Encodes V views [V, b, H, W, C] in one call, each its own BN group or groups, in training mode.

    Returns:
      Unit embeddings [V, b, D] float32, and the new running statistics.
    """
    count = views.shape[0]
    encoder = method.encoder.clone(groups=count * method.encoder.groups)
    encoded, updated = encoder.apply(
        variables, standardize(views, method).reshape(-1, *views.shape[2:]), train=True, mutable=['batch_stats']
    )
    return normalize(encoded.projection).reshape(count, -1, method.dim), updated.get('batch_stats', {})


def encode_keys(
    method: Method,
    variables: Variables,
    views: jax.Array,
    step: jax.Array,
    positions: jax.Array,
    order: jax.Array,
) -> tuple[jax.Array, Variables]:
    """`encode` for the momentum encoder: no gradient, and the batch shuffled across devices and BN groups if asked.

    Shuffling (1911.05722, §3.3) keeps batch statistics from telling which key belongs to which query.
    """
    if not method.shuffle_keys:
        keys, batch_stats = encode(method, variables, views)
        return jax.lax.stop_gradient(keys), batch_stats
    share, first = views.shape[1], jax.lax.axis_index(AXIS) * views.shape[1]
    batch = in_global_order(views.swapaxes(0, 1), order)
    shuffle = jax.random.permutation(
        randomness.step_key(method.seed, randomness.SHUFFLE, step), jnp.arange(batch.shape[0], dtype=jnp.int32)
    )
    mine = batch[jax.lax.dynamic_slice(shuffle, (first,), (share,))]
    keys, batch_stats = encode(method, variables, mine.swapaxes(0, 1))
    shuffled = jax.lax.all_gather(keys, AXIS, axis=1, tiled=True)
    return jax.lax.stop_gradient(shuffled[:, jnp.argsort(shuffle)[positions]]), batch_stats


def standardize(images: jax.Array, method: Method) -> jax.Array:
    """(images - mean) / std per channel, [..., C] float32."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (method.mean, method.std))
    return (images - mean) / std


def in_global_order(values: jax.Array, order: jax.Array) -> jax.Array:
    """Every device's [b, ...] as one [B, ...] on every device, in the order of the global batch.

    `order` [B] says for each position where its row lies among those of all devices.
    """
    return jax.lax.all_gather(values, AXIS, tiled=True)[order]
