"""Starts a new run from another encoder: from a run, a file of weights, or a sentence transformer of Hugging Face.

From a run or a file it takes the (online) backbone, and the projection if the shapes agree. From a folder of Hugging
Face it takes the backbone. With the encoder of text of a folder or of a run the network has its sizes and pooling, and
the config of the new run stores them.
"""

import dataclasses
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dualcl_jax.method.build import Method
from dualcl_jax.method.state import TrainState
from dualcl_jax.models.encoder import TEXT_MODELS
from dualcl_jax.models.images import ImageInput
from dualcl_jax.models.text import FIELDS, describe_sizes
from dualcl_jax.models.vit import LEARNED, PATCHES
from dualcl_jax.models.weights_file import Taken, check_name, is_weights_file, take
from dualcl_jax.system.devices import replicate
from dualcl_jax.system.errors import UserError, listed
from dualcl_jax.system.files import reachable
from dualcl_jax.workdir.checkpoint import Checkpoints
from dualcl_jax.workdir.folder import stored_config
from dualcl_jax.workdir.huggingface import Pretrained, find_pretrained
from dualcl_jax.workdir.saved_run import find_run, open_saved_run

TRANSFORMER = 'transformer'
"""The `model.name` that can start from a folder of Hugging Face."""
HEADS = ('dim', 'head_width')
"""Widths of the projection and the predictor, which follow the width of the encoder where they are equal to it."""
SHOWN = 4
"""How many of the tensors without a place are named."""


def adopt_geometry(config: ConfigDict, stored: ConfigDict | None) -> ConfigDict:
    """A config whose model has the sizes and the pooling of the encoder of text that `init_from` names.

    The encoder is in a folder of Hugging Face, or in a run with the same `model.name`; for any other, this is the
    config itself. Dropout stays that of the config. Those of `HEADS` that are equal to the width remain so.

    Args:
      config: it is not changed.
      stored: the config of the run in the workdir; None for a new run. A run that resumes no longer needs the encoder,
        and keeps what it has stored.

    Raises:
      UserError: the encoder cannot be used, or the config has another model than the folder.
    """
    if not config.init_from or is_weights_file(config.init_from):
        return config
    if stored is not None and (stored.init_from, stored.model.name) != (config.init_from, config.model.name):
        stored = None
    fields = _geometry(config, stored)
    if not fields:
        return config
    adopted = ConfigDict(config.to_dict())
    adopted.model.update(fields)
    for head in HEADS:
        if config.model[head] == config.model.width:
            adopted.model[head] = fields['width'] if stored is None else stored.model[head]
    return adopted


def _geometry(config: ConfigDict, stored: ConfigDict | None) -> dict[str, Any]:
    """The fields of a model config that the encoder of text at `init_from` determines; none for another encoder.

    Args:
      config: the config of the run.
      stored: the config of the run in the workdir if it started from the same encoder.
    """
    pretrained = find_pretrained(config.init_from)
    if pretrained is not None:
        if config.model.name != TRANSFORMER:
            raise UserError(
                f'--init_from={config.init_from}: holds a {TRANSFORMER}; set --config.model.name={TRANSFORMER}, not '
                f'{config.model.name}'
            )
        return pretrained.fields
    if config.model.name not in TEXT_MODELS:
        return {}
    source = stored or _run(config.init_from)[2]
    if source.model.name != config.model.name:
        return {}
    return {name: source.model[name] for name in ('width', *FIELDS) if name != 'dropout'}


def check_encoder(method: Method, state: TrainState, path: str) -> str:
    """Checks that a new run with this state, or its shapes, can start from the encoder that a path names.

    Returns:
      A description of what the run takes from it.

    Raises:
      UserError: there is no encoder, it cannot be read, or it is another network.
    """
    if is_weights_file(path):
        return (
            f'{path}: {_take(method, state, path).describe()}; '
            'set data.mean and data.std to the values it was trained with'
        )
    pretrained = find_pretrained(path)
    if pretrained is not None:
        return _describe(pretrained, state)
    folder, step, source = _run(path)
    check_name(source.model.name, method.encoder.model, f'--init_from={path}')
    with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
        saved = checkpoints.saved_params(step)
    if _shapes(saved['backbone']) != _shapes(state.params['backbone']):
        same = 'the same model.name, width, stem and positions, on images with the same number of channels'
        if not isinstance(method.views, ImageInput):
            same = f'the model.name, the sizes and the tokenizer of that run, which are in {folder}'
        raise UserError(
            f'--init_from={path}: its backbone has different shapes from the one of this config; use {same}'
        )
    sizes = f': {describe_sizes(source.model)}' if source.model.name == TRANSFORMER else ''
    return f'the encoder of {path}{sizes}'


def _run(path: str) -> tuple[epath.Path, int, ConfigDict]:
    """The folder of the run that a path names, the step of its newest checkpoint, and its config."""
    named = reachable(path, f'--init_from={path}')
    if not named.exists():
        raise UserError(
            f'--init_from={path}: no such folder, and models are not downloaded; name a workdir, or the local folder '
            'or file of a model'
        )
    if not named.is_dir():
        raise UserError(
            f'--init_from={path}: weights of an encoder of images must be in a file .safetensors or .npz; add the '
            'suffix to a safetensors file, or write one with dualcl export --format=safetensors'
        )
    folder, steps = find_run(path, flag='--init_from')
    config = stored_config(folder)
    assert config is not None  # `find_run` has found the file
    return folder, steps[-1], config


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
