"""One of a run's two encoders, taken out of a checkpoint."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dualcl_jax.models.encoder import TEXT_MODELS
from dualcl_jax.models.exports.encoder import Description, Variables, compute, only_parts
from dualcl_jax.models.images import ImageInput
from dualcl_jax.models.text import FIELDS as TEXT_FIELDS
from dualcl_jax.system.devices import to_host
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.versions import versions
from dualcl_jax.workdir.saved_run import SavedRun

PRIVATE = ('data.data_dir', 'data.path', 'data.labels', 'init_from')
"""Fields that may hold paths of the machine: an export has them empty."""


def describe(run: SavedRun, *, encoder: str, projection: bool) -> tuple[Description, Variables]:
    """An encoder of a run and its variables, as NumPy arrays.

    Args:
      run: opened for reading.
      encoder: 'query' or 'momentum'.
      projection: whether its output is the projection, not the features of the backbone.

    Raises:
      UserError: its examples are not images.
    """
    config, state, images = run.config, run.state, run.method.views
    if not isinstance(images, ImageInput):
        raise UserError(
            f'--workdir={run.folder}: its encoder does not take images; only encoders of images are exported'
        )
    model = config.model.to_dict() | {'predictor': 'none', 'remat': False}
    unused = {'norm'} if config.model.name in TEXT_MODELS else {'norm', *TEXT_FIELDS}
    description = Description(
        architecture={name: value for name, value in model.items() if name not in unused},
        encoder=encoder,
        output='projection' if projection else 'backbone',
        features=0,  # until it is measured
        image_size=images.size,
        channels=images.channels,
        mean=images.mean,
        std=images.std,
        provenance=_provenance(run),
    )
    variables = state.variables if encoder == 'query' else state.momentum_variables
    variables = to_host(only_parts(variables, description.parts))
    pixels = jax.ShapeDtypeStruct((1, *images.shape), jnp.float32)
    features = jax.eval_shape(partial(compute, description, description.build(), variables), pixels).shape[1]
    return dataclasses.replace(description, features=features), variables


def _provenance(run: SavedRun) -> dict[str, Any]:
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict.fromkeys(PRIVATE, ''))
    return {
        'run': run.folder.resolve().name,
        'step': run.step,
        'data_fingerprint': run.data_fingerprint,
        'config': config.to_dict(),
        'versions': versions(),
    }
