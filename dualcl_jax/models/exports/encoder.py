"""An exported encoder: its description, and the function that computes its features."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from dualcl_jax.models.encoder import FIELDS, Encoder, build_encoder
from dualcl_jax.models.images import ImageInput, to_float
from dualcl_jax.models.vit import LEARNED, PATCHES
from dualcl_jax.system.config import ADDED
from dualcl_jax.system.errors import UserError, first_line

VERSION = 1
"""The version of the metadata; a reader refuses any other."""
ENCODERS = ('query', 'momentum')
OUTPUTS = ('backbone', 'projection')

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Description:
    """Describes an exported encoder; stored as JSON beside its weights or program.

    Attributes:
      architecture: the fields of `config.model` that `build_encoder` reads.
      encoder: 'query' (trained by gradients) or 'momentum' (its moving average).
      output: 'backbone' or 'projection'; neither is normalised.
      features: F, the length of the output.
      image_size: the side of the images in pixels.
      channels: 1 or 3.
      mean: the mean of each channel; pixels in [0, 1] enter the network as (pixel - mean) / std.
      std: the standard deviation of each channel.
      provenance: the name of the run's folder, its step, config and data fingerprint; and the versions of the software
        that wrote the file.
    """

    architecture: dict[str, Any]
    encoder: str
    output: str
    features: int
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: dict[str, Any] = dataclasses.field(repr=False)

    def to_metadata(self) -> dict[str, str]:
        """Encodes each field as JSON."""
        fields = {'version': VERSION} | dataclasses.asdict(self)
        return {name: json.dumps(value, default=list) for name, value in fields.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """The inverse of `to_metadata`. Raises ValueError if a field is missing or has an impossible value."""
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in ['version', *names] if name not in metadata]
        if missing:
            raise ValueError(f'its metadata have no {missing[0]}')
        try:
            values = {name: json.loads(metadata[name]) for name in names}
            version = json.loads(metadata['version'])
        except (TypeError, RecursionError) as error:
            raise ValueError('its metadata are not valid JSON') from error
        if version != VERSION:
            raise ValueError(f'its version is {metadata["version"][:20]}, and this package reads {VERSION}')
        whole = [values[name] for name in ('features', 'image_size', 'channels')]
        if not all(type(number) is int and number > 0 for number in whole):
            raise ValueError('features, image_size and channels must be positive')
        mean, std = (_numbers(values[name]) for name in ('mean', 'std'))
        if len(mean) != len(std) or len(mean) not in (1, values['channels']) or min(std) <= 0:
            raise ValueError('mean and std do not fit its channels')
        if values['encoder'] not in ENCODERS or values['output'] not in OUTPUTS:
            raise ValueError('its encoder or output has an unknown name')
        if not all(isinstance(values[name], dict) for name in ('architecture', 'provenance')):
            raise ValueError('its architecture and provenance must have fields')
        if type(values['provenance'].get('step')) is not int:
            raise ValueError('its provenance has no step')
        return cls(**values | {'mean': mean, 'std': std})

    @property
    def images(self) -> ImageInput:
        """The images that the encoder takes."""
        return ImageInput(self.image_size, self.channels, self.mean, self.std)

    def build(self) -> Encoder:
        """Builds the network. Fields that an earlier version did not write have the values in `ADDED`.

        Raises:
          ValueError: there is no such architecture, or it has fields that this version does not know.
        """
        unknown = ', '.join(sorted(self.architecture.keys() - set(FIELDS)))[:100]
        if unknown:
            raise ValueError(f'this version does not know its architecture: {unknown}; use the version that wrote it')
        absent = {field.removeprefix('model.'): value for field, value in ADDED.items() if field.startswith('model.')}
        try:
            return build_encoder(ConfigDict(absent | self.architecture))
        except (AttributeError, KeyError, TypeError, UserError) as error:
            raise ValueError(f'its architecture cannot be built: {reason(error)}') from error

    @property
    def step(self) -> int:
        """The number of training steps that the encoder has had."""
        return int(self.provenance['step'])

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the network that the output needs."""
        return ('backbone',) if self.output == 'backbone' else ('backbone', 'projection')

    def shapes(self) -> Variables:
        """The shapes and dtypes of the variables of those parts.

        Raises ValueError if the architecture does not exist, or does not fit the described features or images.
        """
        encoder = self.build()
        side = PATCHES.get(encoder.model, self.image_size)
        if self.image_size % side:
            raise ValueError(f'image_size must be a multiple of {side}')
        if encoder.positions == LEARNED:
            side = self.image_size  # otherwise one patch, because a ViT computes sines and cosines even here

        def init(key: jax.Array) -> Any:
            return encoder.init_with_output(key, jnp.zeros((1, side, side, self.channels)), train=False)

        try:
            output, whole = jax.eval_shape(init, jax.random.key(0))
        except Exception as error:  # Flax and JAX raise errors of many types for impossible sizes
            raise ValueError(f'its architecture cannot be built: {reason(error)}') from error
        if getattr(output, self.output).shape[1] != self.features:
            raise ValueError('features does not equal the length of its output')
        return only_parts(whole, self.parts)


def _numbers(values: Any) -> tuple[float, ...]:
    """Converts a list of at least one finite number. Raises ValueError for anything else."""
    if not isinstance(values, list) or not values or not all(type(value) in (int, float) for value in values):
        raise ValueError('mean and std must be numbers')
    try:
        numbers = tuple(map(float, values))
    except OverflowError as error:
        raise ValueError('mean and std must be finite') from error
    if not all(map(math.isfinite, numbers)):
        raise ValueError('mean and std must be finite')
    return numbers


def reason(error: Exception) -> str:
    """The message of an exception as one short line."""
    return first_line(error)[:200]


def only_parts(variables: Variables, parts: tuple[str, ...]) -> Variables:
    """The variables of some parts of an encoder, without collections that would be empty."""
    chosen = {name: {part: tree[part] for part in parts if part in tree} for name, tree in variables.items()}
    return {name: tree for name, tree in chosen.items() if tree}


def compute(description: Description, encoder: Encoder, variables: Variables, pixels: jax.Array) -> jax.Array:
    """Computes features float32 [N, F] of pixels float32 [N, size, size, C] in [0, 1], in evaluation mode."""
    images = description.images.standardize(pixels)
    if description.output == 'projection':
        encoded: Any = encoder.apply(variables, images, train=False)
        return encoded.projection
    backbone = {name: tree['backbone'] for name, tree in variables.items()}
    features: Any = encoder.make_backbone().apply(backbone, images, train=False)
    return features


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """An exported encoder that can be called on images.

    Attributes:
      description: describes the encoder.
      function: maps pixels float32 [N, H, W, C] in [0, 1] to features float32 [N, F].
    """

    description: Description
    function: Callable[[jax.Array], jax.Array] = dataclasses.field(repr=False)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Computes features float32 [N, F] of images [N, H, W, C], uint8 or floats in [0, 1].

        Raises:
          UserError: the images have another size, number of channels or type.
        """
        found, expected = np.shape(images), self.description.images.shape
        if len(found) != 4 or found[1:] != expected:
            shape = ', '.join(map(str, expected))
            raise UserError(f'images of shape {found}: this encoder takes [N, {shape}]; resize them')
        try:
            pixels = to_float(jnp.asarray(images))
        except TypeError:
            raise UserError(f'images of type {jnp.result_type(images)}: use uint8, or floats in [0, 1]') from None
        return self.function(pixels)
