"""Model folders of Hugging Face, read as JSON and plain arrays: no code in them is executed."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from dualcl_jax.data.text.tokens import FILE as TOKENIZER
from dualcl_jax.models.huggingface import Loaded, read_config, read_tensors
from dualcl_jax.models.text import POOLINGS, TextGeometry, describe_sizes
from dualcl_jax.system.errors import UserError, first_line
from dualcl_jax.system.files import reachable

CONFIG, WEIGHTS, MODULES = 'config.json', 'model.safetensors', 'modules.json'
IMAGE_FIELD = 'num_channels'
"""A field of the config of an encoder of images, which that of an encoder of text does not have."""
PICKLES = ('pytorch_model.bin', 'model.ckpt', 'flax_model.msgpack', 'tf_model.h5')
DTYPES: dict[str, Any] = {'F16': np.float16, 'BF16': jnp.bfloat16, 'F32': np.float32, 'F64': np.float64}
"""The types of weights by their names in safetensors. Tensors of other types are constants, which are not read."""
POOLING_MODES = {'mean': 'mean', 'mean_tokens': 'mean', 'cls': 'cls', 'cls_token': 'cls'}
"""The poolings that sentence-transformers shares with `POOLINGS`, by its names for them."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained sentence transformer in a folder.

    Attributes:
      path: the folder as the user named it.
      folder: the same folder as a path.
      kind: its `model_type`, such as 'bert'.
      fields: the fields of a model config that it determines, such as `layers`; `pooling` if it has one.
      left_out: modules of sentence-transformers after the pooling, except normalisation; they are not supported here.
    """

    path: str
    folder: epath.Path
    kind: str
    fields: dict[str, Any]
    left_out: tuple[str, ...]

    def load(self) -> Loaded:
        """The parameters of the backbone, and the names of the tensors that have no place in it.

        Raises:
          UserError: there is no safetensors file, or its tensors do not fit its config.
        """
        file = self.folder / WEIGHTS
        if not file.exists():
            found = ', '.join(name for name in PICKLES if (self.folder / name).exists())
            hint = f', only {found}, which can execute code' if found else ''
            raise UserError(f'--init_from={self.path}: has no {WEIGHTS}{hint}; save the model as one safetensors file')
        sizes = {name: value for name, value in self.fields.items() if name not in ('width', 'pooling')}
        geometry = TextGeometry(**sizes, pooling='mean', dropout=0.0)
        try:
            return read_tensors(_tensors(file.read_bytes()), geometry, self.fields['width'])
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise UserError(f'--init_from={self.path}: {WEIGHTS}: {first_line(error)}; restore the file') from error

    def describe(self) -> str:
        """The network in words."""
        return f'{self.kind} of {self.path}: {describe_sizes(self.fields)}'


def find_pretrained(path: str) -> Pretrained | None:
    """The model in a folder; None if there is none, as in a workdir.

    Raises:
      UserError: its network or pooling is not supported, or a file is missing or damaged.
    """
    folder = reachable(path, f'--init_from={path}')
    config = _json(path, folder / CONFIG)
    if not isinstance(config, dict) or 'model_type' not in config:
        if (folder / WEIGHTS).exists():
            raise UserError(f'--init_from={path}: {WEIGHTS} without a {CONFIG} that names its model_type; restore it')
        return None
    if IMAGE_FIELD in config:
        raise UserError(
            f"--init_from={path}: holds an encoder of images, and folders in Hugging Face's format are for text; name "
            'a file of dualcl export --format=safetensors instead'
        )
    if not (folder / TOKENIZER).exists():
        raise UserError(
            f'--init_from={path}: has no {TOKENIZER}; save it with save_pretrained of a fast tokenizer of transformers'
        )
    try:
        fields = read_config(config)
        pooling, left_out = _modules(path, folder)
    except ValueError as error:
        raise UserError(f'--init_from={path}: {error}') from error
    if pooling is not None:
        fields['pooling'] = pooling
    return Pretrained(path, folder, config['model_type'], fields, left_out)


def _modules(path: str, folder: epath.Path) -> tuple[str | None, tuple[str, ...]]:
    """The pooling of a sentence-transformers model, or None for another model, and its further modules.

    Raises:
      ValueError: its pooling is not supported.
    """
    modules = _json(path, folder / MODULES)
    if not isinstance(modules, list):
        return None, ()
    pooling, others = None, []
    for module in filter(lambda entry: isinstance(entry, dict), modules):
        kind = str(module.get('type')).rpartition('.')[2]
        if kind == 'Pooling':
            pooling = _pooling(_json(path, folder / str(module.get('path')) / CONFIG))
        elif kind not in ('Transformer', 'Normalize'):
            others.append(kind)
    return pooling, tuple(others)


def _pooling(config: Any) -> str:
    """The key of `POOLINGS` that corresponds to a config of the module Pooling."""
    if not isinstance(config, dict):
        raise ValueError('its pooling has no config.json')
    modes = [name.removeprefix('pooling_mode_') for name, on in config.items() if on is True and 'mode_' in name]
    mode = config.get('pooling_mode', '+'.join(modes))
    if not isinstance(mode, str) or mode not in POOLING_MODES:
        raise ValueError(f'its pooling is {mode!r}; only {", ".join(POOLINGS)} are supported')
    return POOLING_MODES[mode]


def _json(path: str, file: epath.Path) -> Any:
    """The content of a JSON file; None where there is no file."""
    try:
        return json.loads(file.read_text()) if file.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'--init_from={path}: {file.name} cannot be read ({first_line(error)}); restore it') from error


def _tensors(content: bytes) -> dict[str, np.ndarray]:
    """The weights of a safetensors file, without the constants in it."""
    return {
        name: np.frombuffer(about['data'], DTYPES[about['dtype']]).reshape(about['shape'])
        for name, about in safetensors.deserialize(content)
        if about['dtype'] in DTYPES
    }
