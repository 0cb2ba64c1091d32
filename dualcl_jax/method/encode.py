"""Encodes views as unit embeddings, with the query encoder and with the momentum encoder."""

import jax
import numpy as np

from dualcl_jax.losses import normalize
from dualcl_jax.method import shuffle_keys
from dualcl_jax.method.accumulate import join, split
from dualcl_jax.method.build import Method
from dualcl_jax.models.encoder import Variables
from dualcl_jax.system.devices import AXIS
from dualcl_jax.system.tree import Tree


def encode(method: Method, variables: Variables, views: Tree, *, predict: bool = False) -> tuple[jax.Array, Variables]:
    """Encodes V views, a tree [V, b, ...], in one call in training mode. Each view has its own BN group or groups.

    With `predict`, as for queries, the projections pass through the predictor, if there is one.

    Returns:
      Unit embeddings [V, b, D] float32, and the new running statistics.
    """
    count = jax.tree.leaves(views)[0].shape[0]
    encoder = method.encoder.clone(groups=count * method.encoder.groups)
    inputs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), views)
    encoded, updated = encoder.apply(variables, inputs, train=True, predict=predict, mutable=['batch_stats'])
    return normalize(encoded.projection).reshape(count, -1, method.dim), updated.get('batch_stats', {})


def encode_keys(method: Method, variables: Variables, views: Tree) -> tuple[jax.Array, Variables]:
    """Encodes views with the momentum encoder, without gradient.

    With `method.shuffle_keys`, the rows are encoded in other BN groups and on other devices than their queries.
    """
    devices, share = jax.lax.axis_size(AXIS), jax.tree.leaves(views)[0].shape[1]
    groups = method.encoder.groups * devices // method.encoder.span
    if not method.shuffle_keys or groups == 1:
        keys, batch_stats = _encode_parts(method, variables, views)
        return jax.lax.stop_gradient(keys), batch_stats
    places = shuffle_keys.destinations(share * devices, groups, method.accumulate_steps)
    shuffled = jax.tree.map(lambda leaf: shuffle_keys.exchange(leaf, places, AXIS, axis=1), views)
    keys, batch_stats = _encode_parts(method, variables, shuffled)
    return jax.lax.stop_gradient(shuffle_keys.exchange(keys, np.argsort(places), AXIS, axis=1)), batch_stats


def _encode_parts(method: Method, variables: Variables, views: Tree) -> tuple[jax.Array, Variables]:
    """Encodes views in the parts of gradient accumulation, each of which has its own batch statistics."""
    if method.accumulate_steps == 1:
        return encode(method, variables, views)

    def one(batch_stats: Variables, part: Tree) -> tuple[Variables, jax.Array]:
        embeddings, batch_stats = encode(method, variables | {'batch_stats': batch_stats}, part)
        return batch_stats, embeddings

    batch_stats, stacked = jax.lax.scan(one, variables['batch_stats'], split(views, method.accumulate_steps, axis=1))
    return join(stacked, axis=1), batch_stats


def in_global_order(values: jax.Array, order: jax.Array) -> jax.Array:
    """Gathers the rows [b, ...] of every device into one array [B, ...] in the order of the global batch.

    `order` [B] is a permutation: the index of each position's row among the rows of all devices.
    """
    return jax.lax.all_gather(values, AXIS, tiled=True).at[order].get(unique_indices=True, mode='promise_in_bounds')
