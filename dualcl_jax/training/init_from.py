"""Starts a new run from another run's encoder: its online backbone, and its projection if the shapes agree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dualcl_jax.method.state import TrainState
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.checkpoint import Checkpoints
from dualcl_jax.workdir.saved_run import find_run, open_saved_run


def check_encoder(params: optax.Params, workdir: str) -> None:
    """Checks that a new run with these parameters, or their shapes, can start from another run's newest checkpoint.

    Raises:
      UserError: the other run has no checkpoint, or its backbone has other shapes.
    """
    folder, steps = find_run(workdir, flag='--init_from')
    checkpoints = Checkpoints((folder / 'checkpoints').resolve(), read_only=True)
    saved = checkpoints.saved_params(steps[-1])
    checkpoints.close()
    if _shapes(saved['backbone']) != _shapes(params['backbone']):
        raise UserError(
            f'--init_from={workdir}: its backbone has other shapes than the one of this config; '
            'use the same model.name, width and stem, on images of as many channels'
        )


def with_encoder(state: TrainState, workdir: str, mesh: Mesh) -> TrainState:
    """Replaces the online and the momentum encoder by the online encoder of another run's newest checkpoint.

    The backbones must have the same shapes (`check_encoder`).

    Raises:
      UserError: the checkpoint cannot be read.
    """
    other = open_saved_run(workdir, mesh=mesh, flag='--init_from').state
    parts = ['backbone']
    before, now = (_shapes(params.get('projection')) for params in (other.params, state.params))
    if now is not None and before == now:
        parts.append('projection')
    params = state.params | {part: other.params[part] for part in parts}
    stats = state.batch_stats | {part: other.batch_stats[part] for part in parts if part in other.batch_stats}
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=stats,
        momentum_params={part: jax.tree.map(jnp.copy, params[part]) for part in state.momentum_params},
        momentum_batch_stats={part: jax.tree.map(jnp.copy, stats[part]) for part in state.momentum_batch_stats},
    )


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)
