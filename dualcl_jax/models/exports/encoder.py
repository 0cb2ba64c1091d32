"""An exported encoder: its description, and the function that computes its features."""

import abc
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

from dualcl_jax.models.encoder import FIELDS, Encoder, Variables, build_encoder
from dualcl_jax.models.images import ImageInput
from dualcl_jax.models.vit import LEARNED, PATCHES
from dualcl_jax.system.config import ADDED
from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.tree import Tree

VERSION = 1
"""The version of the metadata; readers reject any other version."""
ENCODERS = ('query', 'momentum')
OUTPUTS = ('backbone', 'projection')
OPTIONAL = ('value_range',)
"""Fields that were added since the first file was written. They are empty where they are absent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described(abc.ABC):
    """Describes an exported encoder for any kind of example; stored as JSON beside its weights or program.

    A kind adds the attributes of its inputs.

    Attributes:
      architecture: the fields of `config.model` that `build_encoder` reads.
      encoder: 'query' (trained by gradients) or 'momentum' (its moving average).
      output: 'backbone' or 'projection'; neither is normalised.
      features: F, the length of the output.
      provenance: the name of the run's folder, its step, config and data fingerprint; and the versions of the software
        that wrote the file.
    """

    architecture: dict[str, Any]
    encoder: str
    output: str
    features: int
    provenance: dict[str, Any] = dataclasses.field(repr=False)

    @abc.abstractmethod
    def inputs(self, count: Any) -> Tree:
        """Shapes and dtypes of a program's inputs for `count` examples, an integer or a symbolic size."""

    @abc.abstractmethod
    def prepare(self, inputs: Tree) -> Tree:
        """Converts such inputs to the views that the encoder takes."""

    @abc.abstractmethod
    def view(self) -> Tree:
        """Makes the view of one small example of zeros. Raises ValueError if the inputs are impossible."""

    @classmethod
    @abc.abstractmethod
    def check(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Checks the values of the attributes of the inputs, decoded from JSON, and returns those that JSON changed.

        Raises:
          ValueError: a value is impossible.
        """

    def to_metadata(self) -> dict[str, str]:
        """Encodes each field as JSON."""
        fields = {'version': VERSION} | {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields = {name: value for name, value in fields.items() if name not in OPTIONAL or value}
        return {name: json.dumps(value, default=list) for name, value in fields.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """The inverse of `to_metadata`. Raises ValueError if a field is missing or has an impossible value."""
        names = [field.name for field in dataclasses.fields(cls)]
        metadata = dict.fromkeys(OPTIONAL, '[]') | dict(metadata)
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
        checked = cls.check(values)
        if values['encoder'] not in ENCODERS or values['output'] not in OUTPUTS:
            raise ValueError('its encoder or output has an unknown name')
        if not all(isinstance(values[name], dict) for name in ('architecture', 'provenance')):
            raise ValueError('its architecture and provenance must have fields')
        if type(values['provenance'].get('step')) is not int:
            raise ValueError('its provenance has no step')
        return cls(**values | checked)

    def build(self) -> Encoder:
        """Builds the network. Fields that an earlier version did not write have the values in `ADDED`.

        Raises:
          ValueError: there is no such architecture, or it has fields that do not exist in this version.
        """
        unknown = ', '.join(sorted(self.architecture.keys() - set(FIELDS)))[:100]
        if unknown:
            raise ValueError(f'this version does not know its architecture: {unknown}; use the version that wrote it')
        absent = {field.removeprefix('model.'): value for field, value in ADDED.items() if field.startswith('model.')}
        try:
            return build_encoder(ConfigDict(absent | self.architecture))
        except (AttributeError, KeyError, TypeError, UserError) as error:
            raise ValueError(f'its architecture cannot be built: {reason_of(error)}') from error

    @property
    def step(self) -> int:
        """The number of training steps that the encoder has had."""
        return int(self.provenance['step'])

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the network that the output needs."""
        return ('backbone',) if self.output == 'backbone' else ('backbone', 'projection')

    def shapes(self) -> Variables:
        """The shapes and dtypes of the variables of `parts`.

        Raises ValueError if the architecture does not exist, or does not fit the described features or images.
        """
        encoder, view = self.build(), self.view()

        def init(key: jax.Array) -> Any:
            return encoder.init_with_output(key, view, train=False)

        try:
            output, whole = jax.eval_shape(init, jax.random.key(0))
        except Exception as error:  # Flax and JAX raise errors of many types for impossible sizes
            raise ValueError(f'its architecture cannot be built: {reason_of(error)}') from error
        if getattr(output, self.output).shape[1] != self.features:
            raise ValueError('features does not equal the length of its output')
        return only_parts(whole, self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description(Described):
    """Describes an exported encoder of images, see `Described`.

    Attributes:
      image_size: the side of the images in pixels.
      channels: C.
      mean: the mean of each channel; pixels in [0, 1] enter the network as (pixel - mean) / std.
      std: the standard deviation of each channel.
      value_range: (low, high), the values of its training images that become 0 and 1; empty for images of 8 bits.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, ...] = ()

    @property
    def images(self) -> ImageInput:
        """The images that the encoder takes."""
        return ImageInput(self.image_size, self.channels, self.mean, self.std, value_range=self.value_range)

    def inputs(self, count: Any) -> jax.ShapeDtypeStruct:
        """Pixels float32 [count, size, size, C] in [0, 1]."""
        return jax.ShapeDtypeStruct((count, *self.images.shape), jnp.float32)

    def prepare(self, inputs: jax.Array) -> jax.Array:
        return self.images.standardize(inputs)

    def view(self) -> jax.Array:
        side = PATCHES.get(str(self.architecture.get('name')), self.image_size)
        if self.image_size % side:
            raise ValueError(f'image_size must be a multiple of {side}')
        if self.architecture.get('positions') == LEARNED:
            side = self.image_size  # otherwise one patch, because a ViT computes sines and cosines even here
        return jnp.zeros((1, side, side, self.channels))

    @classmethod
    def check(cls, values: dict[str, Any]) -> dict[str, Any]:
        check_positive(values, 'features', 'image_size', 'channels')
        mean, std = (_numbers(name, values[name]) for name in ('mean', 'std'))
        if len(mean) != len(std) or len(mean) not in (1, values['channels']) or min(std) <= 0:
            raise ValueError('mean and std do not fit its channels')
        ends = _numbers('value_range', values['value_range']) if values['value_range'] else ()
        if ends and (len(ends) != 2 or ends[0] >= ends[1]):
            raise ValueError('value_range is not a range')
        return {'mean': mean, 'std': std, 'value_range': ends}


def check_positive(values: Mapping[str, Any], *names: str) -> None:
    """Raises ValueError if one of these values is not a positive integer."""
    if not all(type(values[name]) is int and values[name] > 0 for name in names):
        raise ValueError(f'{", ".join(names[:-1])} and {names[-1]} must be positive')


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """Converts a field that is a list of at least one finite number. Raises ValueError for anything else."""
    if not isinstance(values, list) or not values or not all(type(value) in (int, float) for value in values):
        raise ValueError(f'{name} must be numbers')
    try:
        numbers = tuple(map(float, values))
    except OverflowError as error:
        raise ValueError(f'{name} must be finite') from error
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f'{name} must be finite')
    return numbers


def only_parts(variables: Variables, parts: tuple[str, ...]) -> Variables:
    """The variables of some parts of an encoder, without collections that would be empty."""
    chosen = {name: {part: tree[part] for part in parts if part in tree} for name, tree in variables.items()}
    return {name: tree for name, tree in chosen.items() if tree}


def compute(description: Described, encoder: Encoder, variables: Variables, inputs: Tree) -> jax.Array:
    """Computes features float32 [N, F] of the inputs of N examples (`Described.inputs`), in evaluation mode."""
    views = description.prepare(inputs)
    if description.output == 'projection':
        encoded: Any = encoder.apply(variables, views, train=False)
        return encoded.projection
    backbone = {name: tree['backbone'] for name, tree in variables.items()}
    features: Any = encoder.make_backbone().apply(backbone, views, train=False)
    return features


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """An exported encoder of images that can be called on images.

    Attributes:
      description: describes the encoder.
      function: maps pixels float32 [N, H, W, C] in [0, 1] to features float32 [N, F].
    """

    description: Description
    function: Callable[[jax.Array], jax.Array] = dataclasses.field(repr=False)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Computes features float32 [N, F] of images [N, H, W, C].

        Images are uint8, or floats in [0, 1]. With a `value_range`, they have the values of files, which are scaled and
        clipped.

        Raises:
          UserError: the images have another size, number of channels or type.
        """
        found, expected = np.shape(images), self.description.images.shape
        if len(found) != 4 or found[1:] != expected:
            shape = ', '.join(map(str, expected))
            raise UserError(f'images of shape {found}: this encoder takes [N, {shape}]; resize them')
        if self.description.value_range and jnp.result_type(images) == jnp.uint8:
            low, high = self.description.value_range
            raise UserError(f'images of type uint8: this encoder takes values of {low:g} to {high:g}')
        try:
            pixels = self.description.images.scaled(images)
        except TypeError:
            raise UserError(f'images of type {jnp.result_type(images)}: use uint8, or floats in [0, 1]') from None
        return self.function(pixels)
