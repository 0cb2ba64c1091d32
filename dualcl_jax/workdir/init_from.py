"""Starts a new run from another encoder: from a run, a file of weights, or a sentence transformer of Hugging Face.

From a run or a file it takes the (online) backbone, and the projection if the shapes agree. From a folder of Hugging
Face it takes the backbone; the network then has the sizes of the folder, and the config of the run stores them.
"""

import dataclasses
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dualcl_jax.method.build import Method
from dualcl_jax.method.state import TrainState
from dualcl_jax.models.images import ImageInput
from dualcl_jax.models.text import FIELDS
from dualcl_jax.models.vit import LEARNED, PATCHES
from dualcl_jax.models.weights_file import Taken, is_weights_file, take
from dualcl_jax.system.devices import replicate
from dualcl_jax.system.errors import UserError, listed
from dualcl_jax.system.files import reachable
from dualcl_jax.workdir.checkpoint import Checkpoints
from dualcl_jax.workdir.huggingface import Pretrained, find_pretrained
from dualcl_jax.workdir.saved_run import find_run, open_saved_run

TRANSFORMER = 'transformer'
"""The `model.name` that can start from a folder of Hugging Face."""
SHOWN = 4
"""How many of the tensors without a place are named."""


def adopt_geometry(config: ConfigDict, stored: ConfigDict | None) -> ConfigDict:
    """A config whose model has the sizes of the folder of Hugging Face that `init_from` names.

    If `init_from` is empty or names a run or a file, this is the config itself.

    Args:
      config: it is not changed.
      stored: the config of the run in the workdir, which no longer needs the folder; None for a new run.

    Raises:
      UserError: the folder cannot be used, or the config has another model.
    """
    if not config.init_from or is_weights_file(config.init_from):
        return config
    pretrained = find_pretrained(config.init_from)
    if pretrained is not None:
        if config.model.name != TRANSFORMER:
            raise UserError(
                f'--init_from={config.init_from}: holds a {TRANSFORMER}; set --config.model.name={TRANSFORMER}, not '
                f'{config.model.name}'
            )
        fields = pretrained.fields
    elif stored is not None and _resumes_without(config, stored):
        fields = {name: stored.model[name] for name in ('width', *FIELDS) if name != 'dropout'}
    else:
        return config
    adopted = ConfigDict(config.to_dict())
    adopted.model.update(fields)
    return adopted


def _resumes_without(config: ConfigDict, stored: ConfigDict) -> bool:
    """Whether the run in the workdir is a transformer that started from a folder that is no longer there."""
    if (stored.init_from, stored.model.name) != (config.init_from, TRANSFORMER):
        return False
    return not reachable(config.init_from, f'--init_from={config.init_from}').exists()


def check_encoder(method: Method, state: TrainState, path: str) -> str:
    """Checks that a new run with this state, or its shapes, can start from the encoder that a path names.

    Returns:
      A description of what the run takes from it.

    Raises:
      UserError: there is no encoder, it cannot be read, or its backbone has other shapes.
    """
    if is_weights_file(path):
        return (
            f'{path}: {_take(method, state, path).describe()}; '
            'set data.mean and data.std to the values it was trained with'
        )
    pretrained = find_pretrained(path)
    if pretrained is not None:
        return _describe(pretrained, state)
    folder, steps = find_run(path, flag='--init_from')
    with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
        saved = checkpoints.saved_params(steps[-1])
    if _shapes(saved['backbone']) != _shapes(state.params['backbone']):
        raise UserError(
            f'--init_from={path}: its backbone has different shapes from the one of this config; '
            'use the same model.name, width and stem, on images with the same number of channels'
        )
    return f'the encoder of {path}'


def with_encoder(method: Method, state: TrainState, path: str, mesh: Mesh) -> TrainState:
    """Replaces the online and the momentum encoder by the encoder that a path names.

    For a run, this is the online encoder of the newest checkpoint. The backbones must have the same shapes
    (`check_encoder`); the first layer keeps the values of the state if a file is for images with other channels.

    Raises:
      UserError: the encoder cannot be read.
    """
    params, stats = _read(method, state, path, mesh)
    parts = ['backbone']
    if 'projection' in params and _shapes(params['projection']) == _shapes(state.params.get('projection')):
        parts.append('projection')
    params = state.params | {part: _completed(state.params[part], params[part]) for part in parts}
    stats = state.batch_stats | {part: stats[part] for part in parts if part in stats}
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=stats,
        momentum_params={part: jax.tree.map(jnp.copy, params[part]) for part in state.momentum_params},
        momentum_batch_stats={part: jax.tree.map(jnp.copy, stats[part]) for part in state.momentum_batch_stats},
    )


def _completed(whole: Any, found: Any) -> Any:
    """The parameters that were found, and those of `whole` for the others."""
    flatten = flax.traverse_util.flatten_dict
    return flax.traverse_util.unflatten_dict(flatten(whole) | flatten(found))


def _read(method: Method, state: TrainState, path: str, mesh: Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and batch statistics of the encoder that a path names, by part."""
    if is_weights_file(path):
        found = replicate(_take(method, state, path).variables, mesh)
        return found['params'], found.get('batch_stats', {})
    pretrained = find_pretrained(path)
    if pretrained is not None:
        return {'backbone': replicate(pretrained.load().params, mesh)}, {}
    other = open_saved_run(path, mesh=mesh, flag='--init_from').state
    return dict(other.params), dict(other.batch_stats)


def _take(method: Method, state: TrainState, path: str) -> Taken:
    """The variables in a file of weights that this method's encoder needs."""
    if not isinstance(method.views, ImageInput):
        raise UserError(f'--init_from={path}: files of weights are for encoders of images; name a folder')
    encoder = method.encoder
    side = method.views.size // PATCHES.get(encoder.model, 1)
    template = {'params': state.params, 'batch_stats': state.batch_stats}
    learned = encoder.positions == LEARNED
    return take(path, template, encoder.model, (side, side), learned=learned, flag=f'--init_from={path}')


def _describe(pretrained: Pretrained, state: TrainState) -> str:
    """What a run takes from a folder of Hugging Face, what it leaves out and what is new."""
    loaded = pretrained.load()
    left = [*loaded.skipped, *(f'module {name}' for name in pretrained.left_out)]
    fresh = [part for part in state.params if part != 'backbone']
    return '; '.join(
        [
            pretrained.describe(),
            f'{len(jax.tree.leaves(loaded.params))} tensors loaded',
            f'left out: {listed(left[:SHOWN], len(left))}' if left else 'none left out',
            f'new: {", ".join(fresh)}' if fresh else 'nothing new',
        ]
    )


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)
