"""Extracts one of a run's two encoders from a checkpoint."""

import dataclasses
from functools import partial
from typing import Any

import jax

from dualcl_jax.data.text.tokens import FILE as TOKENIZER
from dualcl_jax.models.encoder import TEXT_MODELS, Variables
from dualcl_jax.models.exports import Description, TextDescription
from dualcl_jax.models.exports.encoder import compute, only_parts
from dualcl_jax.models.images import ImageInput
from dualcl_jax.models.text import FIELDS as TEXT_FIELDS
from dualcl_jax.system.config import PRIVATE
from dualcl_jax.system.devices import to_host
from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.files import absolute
from dualcl_jax.system.kinds import TEXT
from dualcl_jax.system.versions import versions
from dualcl_jax.workdir.saved_run import SavedRun


def describe(run: SavedRun, *, encoder: str, projection: bool) -> tuple[Description | TextDescription, Variables]:
    """The description of an encoder of a run, and its variables as NumPy arrays.

    Args:
      run: the run, opened for reading.
      encoder: 'query' or 'momentum'.
      projection: whether its output is the projection, not the features of the backbone.

    Raises:
      UserError: its examples are neither images nor text, or its tokenizer is missing.
    """
    config, state = run.config, run.state
    model = config.model.to_dict() | {'predictor': 'none', 'remat': False}
    unused = {'norm'} if config.model.name in TEXT_MODELS else {'norm', *TEXT_FIELDS}
    about: dict[str, Any] = {
        'architecture': {name: value for name, value in model.items() if name not in unused},
        'encoder': encoder,
        'output': 'projection' if projection else 'backbone',
        'features': 0,  # until it is measured
        'provenance': _provenance(run),
    }
    description = _with_inputs(run, about)
    variables = state.variables if encoder == 'query' else state.momentum_variables
    variables = to_host(only_parts(variables, description.parts))
    network = partial(compute, description, description.build(), variables)
    features = jax.eval_shape(network, description.inputs(1)).shape[1]
    return dataclasses.replace(description, features=features), variables


def _with_inputs(run: SavedRun, about: dict[str, Any]) -> Description | TextDescription:
    """The description of an encoder: the fields `about`, common to all kinds of examples, and those of its inputs."""
    views = run.method.views
    if isinstance(views, ImageInput):
        inputs = {name: getattr(views, name) for name in ('channels', 'mean', 'std', 'value_range')}
        return Description(**about, image_size=views.size, **inputs)
    if run.kind != TEXT:
        raise UserError(
            f'--workdir={run.folder}: its encoder takes {run.kind}; only encoders of images and text are exported'
        )
    try:
        tokenizer = (run.folder / TOKENIZER).read_text()
    except OSError as error:
        raise UserError(f'{run.folder / TOKENIZER}: cannot be read ({reason_of(error)}); restore it') from error
    return TextDescription(**about, length=run.config.text.length, tokenizer=tokenizer)


def _provenance(run: SavedRun) -> dict[str, Any]:
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict.fromkeys(PRIVATE, ''))
    return {
        'run': absolute(run.folder).name,
        'step': run.step,
        **({} if run.chosen_by is None else {'step_chosen_by': run.chosen_by}),
        'data_fingerprint': run.data_fingerprint,
        **({} if run.test_fingerprint is None else {'test_fingerprint': run.test_fingerprint}),
        'config': config.to_dict(),
        'versions': versions(),
    }
