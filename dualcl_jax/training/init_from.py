"""Starts a new run from an encoder: of another run, or of a file of weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dualcl_jax.method.build import Method
from dualcl_jax.method.state import TrainState
from dualcl_jax.models.images import ImageInput
from dualcl_jax.models.vit import LEARNED, PATCHES
from dualcl_jax.models.weights_file import Taken, is_weights_file, take
from dualcl_jax.system.devices import replicate
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.checkpoint import Checkpoints
from dualcl_jax.workdir.saved_run import find_run, open_saved_run


def check_encoder(method: Method, state: TrainState, path: str) -> None:
    """Checks that a new run with this state, or its shapes, can start from a file of weights or another run's newest
    checkpoint.

    Raises:
      UserError: the other run has no checkpoint, the file cannot be read, or the backbone has other shapes.
    """
    if is_weights_file(path):
        _take(method, state, path)
        return
    folder, steps = find_run(path, flag='--init_from')
    checkpoints = Checkpoints((folder / 'checkpoints').resolve(), read_only=True)
    saved = checkpoints.saved_params(steps[-1])
    checkpoints.close()
    if _shapes(saved['backbone']) != _shapes(state.params['backbone']):
        raise UserError(
            f'--init_from={path}: its backbone has other shapes than the one of this config; '
            'use the same model.name, width and stem, on images of as many channels'
        )


def with_encoder(method: Method, state: TrainState, path: str, mesh: Mesh) -> TrainState:
    """Replaces the online and the momentum encoder by that of a file, or the online one of another run's newest
    checkpoint.

    The backbones must have the same shapes (`check_encoder`). Of a file it prints what was taken and what was not.

    Raises:
      UserError: the file or the checkpoint cannot be read.
    """
    if is_weights_file(path):
        taken = _take(method, state, path)
        if jax.process_index() == 0:
            print(f'{path}: {taken.describe()}')
            print(f'note: {path}: its pixels were standardised in some way; data.mean and data.std should be the same')
        found = replicate(taken.variables, mesh)
        params, stats = found['params'], found.get('batch_stats', {})
    else:
        other = open_saved_run(path, mesh=mesh, flag='--init_from').state
        params, stats = dict(other.params), dict(other.batch_stats)
    parts = ['backbone']
    if _shapes(params.get('projection')) == _shapes(state.params['projection']):
        parts.append('projection')
    params = state.params | {part: params[part] for part in parts}
    stats = state.batch_stats | {part: stats[part] for part in parts if part in stats}
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=stats,
        momentum_params={part: jax.tree.map(jnp.copy, params[part]) for part in state.momentum_params},
        momentum_batch_stats={part: jax.tree.map(jnp.copy, stats[part]) for part in state.momentum_batch_stats},
    )


def _take(method: Method, state: TrainState, path: str) -> Taken:
    """The variables in a file of weights that this method's encoder needs."""
    if not isinstance(method.views, ImageInput):
        raise UserError(f'--init_from={path}: files of weights are for encoders of images; name a workdir')
    encoder = method.encoder
    side = method.views.size // PATCHES.get(encoder.model, 1)
    template = {'params': state.params, 'batch_stats': state.batch_stats}
    learned = encoder.positions == LEARNED
    return take(path, template, encoder.model, (side, side), learned=learned, flag=f'--init_from={path}')


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)
