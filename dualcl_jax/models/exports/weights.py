"""Exports weights as safetensors (a JSON header and plain arrays, no code), with our names or torchvision's.

Our names are the paths in the Flax variables, such as `params.backbone.layer1_0.conv1.kernel` or
`batch_stats.backbone.bn1.mean`; convolutions are [height, width, in, out] and dense layers [in, out]. torchvision's
names are those of its ResNet, such as `layer1.0.conv1.weight` or `bn1.running_mean`, with its order of axes. The
projection is its `fc`, as in MoCo: one layer, or the layers of an nn.Sequential.
"""

import hashlib
import json

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from dualcl_jax.models.encoder import Variables
from dualcl_jax.models.exports.encoder import Described, LoadedEncoder
from dualcl_jax.models.exports.sentences import LoadedTextEncoder, read_description, with_variables
from dualcl_jax.models.weights_file import LEAVES, from_torch, in_torch, read_metadata
from dualcl_jax.system.errors import UserError, reason_of

Tensors = dict[str, np.ndarray]

FLAX, TORCH = 'flax', 'pt'
"""The `format` in the metadata, as other readers of safetensors expect it."""
FC = ('none', 'linear', 'mlp', 'mlp2_bn', 'mlp3_bn')
"""The projections that modules with weights and ReLU compute, as the `fc` of a ResNet of torchvision."""


def write(description: Described, variables: Variables) -> bytes:
    """Writes a safetensors file with this project's names."""
    return _pack(description, _flat(variables), FLAX)


def write_torchvision(description: Described, variables: Variables) -> bytes:
    """Writes a safetensors file with torchvision's names, for `load_state_dict(safetensors.torch.load_file(path))`.

    Raises:
      UserError: torchvision has no such network or projection.
    """
    model, projection = description.architecture['name'], description.architecture['projection']
    if not model.startswith('resnet'):
        raise UserError(f'--format=torchvision: torchvision has no {model}; use safetensors or stablehlo')
    if description.output == 'projection' and projection not in FC:
        raise UserError(
            f'--format=torchvision: its fc cannot compute the projection {projection}; leave --projection out, or use '
            'safetensors or stablehlo'
        )
    tensors: Tensors = {}
    for name, array in _flat(variables).items():
        torch_name = torchvision_name(name, description)
        tensors[torch_name] = in_torch(array)
        if torch_name.endswith('running_var'):
            steps = np.asarray(description.provenance['step'], np.int64)
            tensors[torch_name.replace('running_var', 'num_batches_tracked')] = steps
    return _pack(description, tensors, TORCH)


def torchvision_name(name: str, description: Described) -> str:
    """The name in torchvision's ResNet of the variable that this project calls `name`."""
    _, part, *path, leaf = name.split('.')
    module = '.'.join(path).replace('_', '.')
    if part == 'projection' and description.architecture['projection'].endswith('_bn'):
        kind, layer = path[0].split('_')  # each layer of the Sequential is Linear, BatchNorm1d, ReLU
        module = f'fc.{3 * int(layer) + (kind == "bn")}'
    return f'{module}.{LEAVES[leaf]}'


def read(content: bytes) -> LoadedEncoder | LoadedTextEncoder:
    """Reads the encoder from a file with either kind of names. Raises ValueError if it is damaged or not an export."""
    try:
        tensors = safetensors.numpy.load(content)
        metadata = read_metadata(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(reason_of(error)) from error
    if 'sha256' not in metadata:
        raise ValueError('its metadata have no description')
    if metadata.pop('sha256') not in (digest(tensors, metadata), digest(tensors, None)):
        raise ValueError('its tensors or their description have changed since they were written')
    description = read_description(metadata)
    expected, names = _flat(description.shapes()), metadata.get('format')
    if names != FLAX and (names != TORCH or not description.architecture['name'].startswith('resnet')):
        raise ValueError('the names of its tensors are of an unknown kind')
    flat = {}
    for name, leaf in expected.items():
        stored = name if names == FLAX else torchvision_name(name, description)
        if stored not in tensors:
            raise ValueError(f'it has no tensor {stored}')
        array = from_torch(tensors[stored]) if names == TORCH else tensors[stored]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise ValueError(f'tensor {stored} is {array.dtype} {array.shape}, not {leaf.dtype} {leaf.shape}')
        flat[name] = array
    return with_variables(description, flax.traverse_util.unflatten_dict(flat, sep='.'))


def _pack(description: Described, tensors: Tensors, names: str) -> bytes:
    tensors = {name: np.array(array, order='C') for name, array in tensors.items()}
    metadata = {'format': names, **description.to_metadata()}
    return safetensors.numpy.save(tensors, metadata | {'sha256': digest(tensors, metadata)})


def _flat(variables: Variables) -> Tensors:
    """The variables as a dict of paths."""
    return flax.traverse_util.flatten_dict(variables, sep='.')


def digest(tensors: Tensors, metadata: dict[str, str] | None) -> str:
    """The SHA-256 of the metadata and of the name, dtype, shape and bytes of every tensor, sorted by name.

    It reveals a flipped bit in a weight or in the description. For files from before 0.1.0 it leaves the
    metadata out (None).
    """
    hashed = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        hashed.update(f'{name}:{array.dtype}:{array.shape};'.encode())
        hashed.update(array.tobytes())
    if metadata is not None:
        hashed.update(json.dumps(metadata, sort_keys=True).encode())
    return hashed.hexdigest()
