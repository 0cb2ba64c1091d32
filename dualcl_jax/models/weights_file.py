"""Reads a backbone's variables from a file of weights: our exports, and ResNets, ViTs and ConvNeXts of others.

The others are torchvision's and timm's ResNets, timm's and DINO's ViTs, and timm's ConvNeXt. Their tensor names may
share any prefix, such as `module.encoder_q.`. Files are safetensors or .npz; nothing in them is executed.
"""

import dataclasses
import json
import math
import zipfile

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from dualcl_jax.models import convnext
from dualcl_jax.models.encoder import MODELS, Variables
from dualcl_jax.models.vit import PATCHES, sine_cosine_positions
from dualcl_jax.system.errors import UserError, first_line
from dualcl_jax.system.files import BROKEN, reachable

OURS = 'params.backbone.'
"""The prefix of the names of parameters in an export with this project's names."""
PROBES = ('conv1.weight', 'patch_embed.proj.weight', 'stem.0.weight')
"""The first tensor of each kind of network of other libraries."""
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
"""The last part of a variable's path, and of its name in PyTorch."""
INSIDE_BLOCKS = {'qkv': 'attn.qkv', 'proj': 'attn.proj', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
"""Layers of a block of a ViT or ConvNeXt, and their names in timm."""
TO_TORCH, FROM_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}, {4: (2, 3, 1, 0), 2: (1, 0)}
"""The order of the axes of kernels, by their number, in PyTorch and back. Other arrays stay as they are."""
SUFFIXES = ('.safetensors', '.npz')
FIRST = {'params.backbone.conv1.kernel': 2, 'params.backbone.patch_embed.kernel': 0, 'params.backbone.stem_0.kernel': 0}
"""The first layer of each kind of network, and the axis of its kernel that depends on the channels of the images."""
SIDES = PATCHES | {'convnext_t': convnext.PATCH}
"""Side of the patches of a ViT or ConvNeXt. The kernel of its first layer has a row for each value of a patch."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """The variables that were taken from a file.

    Attributes:
      variables: those of the backbone, by collection, and those of the projection if the file has one that fits. The
        kernel of the first layer is left out if the file is for images with other channels.
      source: the origin of the names in the file.
      skipped: the names of tensors that were not needed.
      notes: changes that were made, and facts that the file does not contain.
    """

    variables: Variables
    source: str
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    def describe(self) -> str:
        """Describes what was taken and skipped."""
        count = len(jax.tree.leaves(self.variables))
        parts = [f'{count} tensors loaded ({self.source})']
        if self.skipped:
            named = ', '.join(self.skipped[:3]) + (', …' if len(self.skipped) > 3 else '')
            parts.append(f'{len(self.skipped)} skipped ({named})')
        if 'projection' not in self.variables['params']:
            parts.append('the projection is newly initialised')
        return '; '.join([*parts, *self.notes])


def is_weights_file(path: str) -> bool:
    """Whether a path names a file of weights, not a workdir."""
    return path.lower().endswith((*SUFFIXES, '.pt', '.pth', '.bin', '.ckpt'))


def take(path: str, template: Variables, model: str, grid: tuple[int, int], *, learned: bool, flag: str) -> Taken:
    """Reads the variables of an encoder from a file.

    Args:
      path: a local or remote path.
      template: params and batch_stats of a new encoder with that backbone, as arrays or shapes.
      model: name of the backbone, a key of `MODELS`.
      grid: rows and columns of patches of a ViT; learned positions of another grid are interpolated.
      learned: whether the ViT has learned positions.
      flag: the name of the path in messages.

    Raises:
      UserError: there is no such file, or its tensors are not those of this backbone.
    """
    tensors = read_tensors(path, flag)
    expected = flax.traverse_util.flatten_dict(template, sep='.')
    backbone = {name: leaf for name, leaf in expected.items() if name.split('.')[1] == 'backbone'}
    if any(name.startswith(OURS) for name in tensors):
        check_name(_stored_name(path, flag), model, flag)
        return _ours(tensors, expected, backbone, model, flag)
    prefix = _prefix(tensors, flag)
    found, notes = {}, []
    for name, leaf in backbone.items():
        given = prefix + torch_name(name)
        if given not in tensors:
            if name.endswith('pos_embed'):
                raise UserError(f'{flag}: has no learned positions; use model.positions=sine_cosine')
            raise UserError(f'{flag}: has no tensor {given}, which {model} needs; use the model.name of the file')
        _check_patches(tensors[given], name, model, f'{flag}: {given}')
        array, note = _converted(tensors[given], name, grid, leaf.shape)
        notes += [note] if note else []
        fresh = _other_channels(name, array.shape, leaf.shape, model)
        if fresh:
            notes.append(f'{given} {fresh}')
            continue
        if array.shape != leaf.shape:
            axes = TO_TORCH.get(len(leaf.shape), range(len(leaf.shape)))
            needed = tuple(leaf.shape[axis] for axis in axes)  # as far as the transposition determines it
            raise UserError(
                f'{flag}: {given} is {tensors[given].shape}, but this config needs '
                f'{needed}; use the model.name, stem and width of the file, and its channels'
            )
        found[name] = array
    if model in PATCHES:
        notes += _check_positions(tensors.get(f'{prefix}pos_embed'), learned, flag)
        if model.startswith('vit_s16'):
            notes.append(
                'the file does not store the number of heads: vit_s16 has 12 (MoCo v3), vit_s16_h6 has 6 (DINO, timm)'
            )
    used = {prefix + torch_name(name) for name in backbone}
    skipped = [name for name in tensors if name not in used and not name.endswith('num_batches_tracked')]
    source = f'names of torchvision or timm{f" after {prefix}" if prefix else ""}'
    extra = sorted(name for name in skipped if _in_a_block(name.removeprefix(prefix)))
    if extra:
        raise UserError(f'{flag}: has {extra[0]}, which {model} does not; use the model.name of the file')
    return Taken(flax.traverse_util.unflatten_dict(found, sep='.'), source, tuple(skipped), tuple(notes))


def read_tensors(path: str, flag: str) -> dict[str, np.ndarray]:
    """Reads a file's tensors, floats as float32. Raises UserError if it cannot be read or is of another kind."""
    if not path.lower().endswith(SUFFIXES):
        raise UserError(
            f'{flag}: pickled weights are not read, because they can execute code; '
            'convert them where torch is installed:\n'
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
        )
    try:
        file = reachable(path, flag)
        if path.lower().endswith('.npz'):
            with file.open('rb') as content, np.load(content, allow_pickle=False) as arrays:
                tensors = {name: arrays[name] for name in arrays.files}
        else:
            tensors = safetensors.numpy.load(file.read_bytes())
    except (*BROKEN, KeyError, safetensors.SafetensorError, zipfile.BadZipFile) as error:
        raise UserError(f'{flag}: cannot be read ({first_line(error)}); name a file of weights') from error
    return {
        name: array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array
        for name, array in tensors.items()
    }


def read_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a valid safetensors file, of which `content` has at least the header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    return header.get('__metadata__') or {}


def check_name(stored: str, model: str, flag: str) -> None:
    """Raises UserError if an encoder is another of `MODELS` than this one, whose shapes may be the same: vit_s16_h6."""
    if stored != model and stored in MODELS and model in MODELS:
        raise UserError(f'{flag}: is a {stored}, not a {model}; use the model.name of its run, {stored}')


def _stored_name(path: str, flag: str) -> str:
    """The `model.name` in the description of an export of this project; '' if it has none."""
    if not path.lower().endswith('.safetensors'):
        return ''
    with reachable(path, flag).open('rb') as file:
        size = file.read(8)
        metadata = read_metadata(size + file.read(int.from_bytes(size, 'little')))
    described = json.loads(metadata.get('architecture', '{}'))
    return str(described.get('name', '')) if isinstance(described, dict) else ''


def torch_name(name: str) -> str:
    """The name in torchvision or timm of the variable of a backbone that this project calls `name`."""
    _, _, *path, leaf = name.split('.')
    if not path:
        return leaf  # cls_token and pos_embed
    if path[0] == 'patch_embed':
        return f'patch_embed.proj.{LEAVES[leaf]}'
    if path[0].startswith(('blocks_', 'stages_', 'stem_')):
        first = path[0].replace('_', '.')
        rest = [INSIDE_BLOCKS.get(part, part) for part in path[1:]]
        return '.'.join([first, *rest, LEAVES.get(leaf, leaf)])
    return '.'.join(path).replace('_', '.') + f'.{LEAVES.get(leaf, leaf)}'


def in_torch(array: np.ndarray) -> np.ndarray:
    """Transposes a kernel to the order of axes in PyTorch; other arrays stay as they are."""
    return array.transpose(TO_TORCH.get(array.ndim, range(array.ndim)))


def from_torch(array: np.ndarray) -> np.ndarray:
    """The inverse of `in_torch`."""
    return array.transpose(FROM_TORCH.get(array.ndim, range(array.ndim)))


def _in_a_block(name: str) -> bool:
    """Whether a tensor, by its name in another library, is inside the network and not in a head."""
    return name.startswith(('layer', 'blocks.', 'stages.', 'downsample', 'patch_embed.'))


def _other_channels(name: str, found: tuple[int, ...], wanted: tuple[int, ...], model: str) -> str:
    """A note that the first layer's kernel is newly initialised, if only the channels of its images differ; else ''."""
    axis, values = FIRST.get(name), SIDES.get(model, 0) ** 2
    if axis is None or len(found) != len(wanted) or found == wanted:
        return ''
    if any(a != b for place, (a, b) in enumerate(zip(found, wanted, strict=True)) if place != axis):
        return ''
    if axis == 0 and (not values or found[0] % values):
        return ''  # patches of another size, or of a network of one's own
    before, now = (shape[axis] if axis else shape[0] // values for shape in (found, wanted))
    return f'is newly initialised: {before} channels in the file and {now} in the images'


def _check_patches(tensor: np.ndarray, name: str, model: str, what: str) -> None:
    """Raises UserError if a tensor [D, C, height, width] of the first layer is for patches of another size."""
    side = SIDES.get(model)
    if FIRST.get(name) == 0 and side and tensor.ndim == 4 and tensor.shape[2:] != (side, side):
        height, width = tensor.shape[2:]
        raise UserError(
            f'{what} is for patches of {height}×{width} pixels, and those of {model} have {side}×{side}; '
            'use the model.name of the file, or a file with such patches'
        )


def _ours(tensors: dict[str, np.ndarray], expected: Variables, backbone: Variables, model: str, flag: str) -> Taken:
    """Takes the variables of an export with this project's names."""
    notes, backbone = [], dict(backbone)
    for name, leaf in list(backbone.items()):
        fresh = _other_channels(name, tensors[name].shape, leaf.shape, model) if name in tensors else ''
        if fresh:
            notes.append(f'{name} {fresh}')
            del backbone[name]
            continue
        if name not in tensors or tensors[name].shape != leaf.shape:
            found = f'is {tensors[name].shape}, not {leaf.shape}' if name in tensors else 'is missing'
            raise UserError(
                f'{flag}: {name} {found}; use the model.name, width and stem of its run, '
                'on images with the same number of channels'
            )
    strange = [name for name in tensors if name.split('.')[1:2] == ['backbone'] and name not in expected]
    if strange:
        raise UserError(f'{flag}: has {strange[0]}, which this config does not have; use the model.name of its run')
    head = {name: leaf for name, leaf in expected.items() if name.split('.')[1] == 'projection'}
    fits = bool(head) and all(name in tensors and tensors[name].shape == leaf.shape for name, leaf in head.items())
    used = backbone | (head if fits else {})
    variables = flax.traverse_util.unflatten_dict({name: tensors[name] for name in used}, sep='.')
    skipped = tuple(name for name in tensors if name not in used)
    return Taken(variables, 'an export of dualcl_jax', skipped, tuple(notes))


def _prefix(tensors: dict[str, np.ndarray], flag: str) -> str:
    """The prefix of the names of the network in a file. Raises UserError if the file has none, or several."""
    found = sorted(
        {name.removesuffix(probe) for name in tensors for probe in PROBES if f'.{name}'.endswith(f'.{probe}')}
    )
    inner = [prefix for prefix in found if any(prefix.startswith(other) for other in found if other != prefix)]
    found = [prefix for prefix in found if prefix not in inner and not _in_a_block(prefix)]
    if not found:
        raise UserError(
            f"{flag}: its tensor names match no known network; known are dualcl_jax's, torchvision's and timm's "
            "ResNets, timm's and DINO's ViTs, and timm's ConvNeXt"
        )
    if len(found) > 1:
        raise UserError(f'{flag}: has several networks, {", ".join(found)}*; keep the tensors of only one in the file')
    return found[0]


def _converted(
    array: np.ndarray, name: str, grid: tuple[int, int], shape: tuple[int, ...]
) -> tuple[np.ndarray, str | None]:
    """Converts a tensor of another library to this project's layout; adds a note if it was changed otherwise."""
    if name.endswith('cls_token'):
        return array.reshape(-1), None
    if name.endswith('pos_embed'):
        return _positions(array, grid)
    if array.ndim == 4 and (name.split('.')[2] == 'patch_embed' or len(shape) == 2):
        return from_torch(array).reshape(-1, array.shape[0]), None  # patches row by row, channels last
    return from_torch(array), None


def _positions(array: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, str | None]:
    """Converts positions [1, 1 + n·n, D] to [1 + rows · columns, D], interpolated bicubically as in timm if needed."""
    places = array.reshape(-1, array.shape[-1])
    side = math.isqrt(len(places) - 1)
    if side * side != len(places) - 1 or (side, side) == grid:
        return places, None
    token, patches = places[:1], places[1:].reshape(side, side, -1)
    resized = jax.image.resize(jnp.asarray(patches), (*grid, patches.shape[-1]), 'cubic', antialias=True)
    note = f'positions interpolated from {side}×{side} to {grid[0]}×{grid[1]} patches'
    return np.concatenate([token, np.asarray(resized).reshape(grid[0] * grid[1], -1)]), note


def _check_positions(array: np.ndarray | None, learned: bool, flag: str) -> list[str]:
    """Raises UserError if the file has learned positions and the model does not; returns notes."""
    if learned or array is None:
        return []
    places = array.reshape(-1, array.shape[-1])
    side = math.isqrt(len(places) - 1)
    fixed = side * side == len(places) - 1 and np.allclose(
        places[1:], sine_cosine_positions(side, side, places.shape[-1]), atol=1e-4
    )
    if not fixed:
        raise UserError(f'{flag}: its positions are learned; add --config.model.positions=learned')
    return ['its positions are sines and cosines']
