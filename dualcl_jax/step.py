"""One training step on one device. Together with `losses.py` this is the method.

The order is that of MoCo (1911.05722, Algorithm 1): move the momentum encoder towards the online encoder, encode both
views, compare the queries with the queue of earlier keys, update the online encoder, enqueue the new keys.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from dualcl_jax.data.loader import Batch
from dualcl_jax.method import randomness
from dualcl_jax.method.accumulate import average_gradient, join, split
from dualcl_jax.method.build import Method
from dualcl_jax.method.contrast import Candidates, Comparison, allowed_negatives, compare, gather_candidates
from dualcl_jax.method.diagnostics import measure
from dualcl_jax.method.encode import encode, encode_keys
from dualcl_jax.method.negatives.queue import enqueue
from dualcl_jax.method.negatives.queue_loss import Anchors
from dualcl_jax.method.optim import at_step
from dualcl_jax.method.state import TrainState
from dualcl_jax.models.encoder import Variables
from dualcl_jax.system.devices import AXIS
from dualcl_jax.system.tree import Tree

Part = tuple[Tree, jax.Array, Anchors]
"""Query views, a tree [V, b, ...]; their positive keys [V, b, D]; and the metadata of the anchors, [b]."""


def train_step(method: Method, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step on one device, under a mapped axis named `AXIS`.

    If the loss, a gradient, a key or a new parameter is not finite, `train/finite` is False and the batch changes
    nothing: the next state is the current one with `step` increased by one, which the schedules follow.

    Args:
      method: the resolved configuration.
      state: the current state.
      batch: the b examples of this device.

    Returns:
      The next state, which is the same on every device except for the slots of a sharded queue; and scalar metrics,
      averaged over the devices.
    """
    # Momentum encoder: ξ ← m·ξ + (1 - m)·θ.
    momentum = method.ema(state.step)
    online = {part: state.params[part] for part in state.momentum_params}  # without the predictor
    momentum_params = jax.tree.map(
        lambda xi, theta: momentum * xi + (1.0 - momentum) * theta, state.momentum_params, online
    )

    # Two random views of each example.
    view_keys, draw_keys = (
        randomness.example_keys(method.seed, purpose, state.step, batch.positions)
        for purpose in (randomness.VIEWS, randomness.NEGATIVES)
    )
    anchors = Anchors(batch.positions, batch.ids, batch.labels, draw_keys)
    query_views, key_views = view_orders(method.views.make(view_keys, batch.examples), symmetric=method.symmetric)

    # Keys from the momentum encoder, queries from the online encoder; the loss compares them with the queue.
    momentum_variables = {'params': momentum_params, 'batch_stats': state.momentum_batch_stats}
    keys, momentum_batch_stats = encode_keys(method, momentum_variables, key_views)
    candidates = gather_candidates(method, state.queue, keys, anchors, state.step)
    gradients, batch_stats, compared = differentiate(method, candidates, state, (query_views, keys, anchors))

    # Online encoder: one step of the optimizer.
    gradients = jax.lax.pmean(gradients, AXIS)
    updates, opt_state = method.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    # Metrics, and whether the step is finite on every device.
    counted = anchors if method.queue_axis is None else candidates.everyone
    used = candidates.queues[0]
    allowed = partial(allowed_negatives, method, used)
    metrics = measure(compared, counted, used, allowed, state.step, method.queue_axis)
    metrics |= {'train/gradient_norm': optax.tree.norm(gradients)}
    metrics |= {'train/learning_rate': method.learning_rate(state.step), 'train/ema_momentum': momentum}
    if method.count_negatives is not None:
        metrics['train/negatives'] = jnp.asarray(candidates.k, jnp.float32)
    statistics, _ = ravel_pytree((batch_stats, momentum_batch_stats))  # one reduction instead of many small ones
    checked = metrics['train/loss'], metrics['train/gradient_norm'], keys, statistics, params
    finite = jax.lax.pmin(all_finite(checked), AXIS)
    metrics['train/finite'] = finite

    # The new keys replace the oldest ones in the queue. A step that is not finite changes neither queue nor parameters.
    queue = state.queue
    if queue is not None:
        everyone, global_keys = candidates.everyone, candidates.keys.reshape(-1, method.dim)
        ids, labels = (jnp.repeat(column, keys.shape[0]) for column in (everyone.ids, everyone.labels))
        queue = enqueue(queue, global_keys, ids, labels, state.step, method.queue_axis, when=finite)
    keep = partial(jax.tree.map, partial(jnp.where, finite))
    next_state = TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        batch_stats=keep(batch_stats, state.batch_stats),
        momentum_params=keep(momentum_params, state.momentum_params),
        momentum_batch_stats=keep(momentum_batch_stats, state.momentum_batch_stats),
        opt_state=keep(opt_state, at_step(state.opt_state, state.step + 1)),
        queue=queue,
    )
    return next_state, metrics


def view_orders(views: Tree, *, symmetric: bool) -> tuple[Tree, Tree]:
    """Pairs two views [2, b, ...] as query views and key views, [V, b, ...] each.

    View 1 is the query and view 2 the key (V = 1). If `symmetric`, each view is also the other's query (V = 2).
    """
    if symmetric:
        return views, jax.tree.map(lambda leaf: leaf[::-1], views)
    return jax.tree.map(lambda leaf: leaf[:1], views), jax.tree.map(lambda leaf: leaf[1:], views)


def differentiate(
    method: Method, candidates: Candidates, state: TrainState, part: Part
) -> tuple[optax.Updates, Variables, Comparison]:
    """Computes the gradient of the loss on one device, one part of gradient accumulation after the other.

    Returns:
      The gradient, the new running statistics of the online encoder, and the comparison that the metrics describe.
    """
    loss_fn = partial(_loss, method, candidates)
    if method.accumulate_steps == 1:
        gradient_of = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (batch_stats, compared)), gradients = gradient_of(state.params, state.batch_stats, part)
        return gradients, batch_stats, compared
    views, keys, anchors = part
    views, keys = split((views, keys), method.accumulate_steps, axis=1)
    parts = views, keys, split(anchors, method.accumulate_steps)
    gradients, batch_stats, compared = average_gradient(loss_fn, state.params, state.batch_stats, parts)
    queries, contrasts = join(compared.queries, axis=1), join(compared.contrasts)
    return gradients, batch_stats, Comparison(compared.loss.mean(), compared.chance.mean(), queries, contrasts)


def _loss(
    method: Method, candidates: Candidates, params: optax.Params, batch_stats: Variables, part: Part
) -> tuple[jax.Array, tuple[Variables, Comparison]]:
    """Encodes the queries of one part and compares them. Returns the loss, running statistics and the comparison."""
    views, keys, anchors = part
    queries, batch_stats = encode(method, {'params': params, 'batch_stats': batch_stats}, views, predict=True)
    compared = compare(method, candidates, queries, keys, anchors)
    return method.loss_scale * compared.loss, (batch_stats, compared)


def all_finite(tree: Tree) -> jax.Array:
    """Whether every floating-point number of a tree is finite, [] bool."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()
