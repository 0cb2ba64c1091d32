"""A new run from another run's encoder: its online backbone, and its projection where that has the same shape."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from dualcl_jax.checkpoint import Checkpoints
from dualcl_jax.config import from_json
from dualcl_jax.errors import UserError
from dualcl_jax.method import build_method
from dualcl_jax.state import TrainState, create_train_state


def saved_step(folder: epath.Path) -> int | None:
    """The newest checkpoint's step of a workdir, which is only looked at; None without any."""
    parent = folder / 'checkpoints'
    steps = [int(path.name) for path in parent.iterdir() if re.fullmatch(r'\d+', path.name)] if parent.exists() else []
    return max(steps, default=None)


def check_encoder(workdir: str) -> int:
    """The newest step of the workdir of `init_from`. Raises UserError where there is no run with a checkpoint."""
    folder = epath.Path(workdir)
    step = saved_step(folder)
    if step is None or not (folder / 'config.json').exists():
        raise UserError(f'--init_from={workdir}: no run with a checkpoint; name the --workdir of one')
    return step


def with_encoder(state: TrainState, workdir: str, mesh: Mesh) -> TrainState:
    """A new state whose online and momentum encoder are the online encoder of another run's newest checkpoint.

    Raises:
      UserError: there is none, or its backbone is of another shape.
    """
    step, folder = check_encoder(workdir), epath.Path(workdir)
    try:
        config = from_json((folder / 'config.json').read_text())
        method = build_method(config, total_steps=1, steps_per_epoch=1, num_devices=1)
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(f'--init_from={workdir}: its config.json is not one of this version ({error})') from error
    like = jax.eval_shape(lambda: create_train_state(method, channels_of(state.params)))
    checkpoints = Checkpoints((folder / 'checkpoints').resolve())
    other, _ = checkpoints.restore(step, like, mesh)
    checkpoints.close()
    if _shapes(other.params['backbone']) != _shapes(state.params['backbone']):
        raise UserError(
            f'--init_from={workdir}: its backbone, model.name={config.model.name}, has other shapes; '
            'use the same model.name, width and stem'
        )
    parts = ['backbone']
    if _shapes(other.params['projection']) == _shapes(state.params['projection']):
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


def channels_of(params: Any) -> int:
    """Channels of the images that an encoder of these parameters sees."""
    backbone = params['backbone']
    if 'patch_embed' in backbone:
        return 3
    return int(backbone['conv1']['kernel'].shape[2])


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)
