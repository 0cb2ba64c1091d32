"""An encoder on its own: what it is, in words and numbers, and how it is called."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from dualcl_jax.errors import UserError
from dualcl_jax.models import Encoder, build_encoder

VERSION = 1
"""Of the metadata; a reader refuses a later one."""
ENCODERS = ('query', 'momentum')
OUTPUTS = ('backbone', 'projection')

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Description:
    """What an exported encoder is; stored as JSON beside its weights or program.

    Attributes:
      architecture: the fields of `config.model` that `build_encoder` reads.
      encoder: 'query' (trained by gradients) or 'momentum' (its moving average).
      output: 'backbone' or 'projection'; neither is normalised.
      features: length F of the output.
      image_size: side of the images in pixels.
      channels: 1 or 3.
      mean, std: per channel; pixels in [0, 1] enter the network as (pixel - mean) / std.
      provenance: the run: name of its folder, step, config, fingerprint of its data; versions of what wrote the file.
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
        """Each field as JSON."""
        fields = {'version': VERSION} | dataclasses.asdict(self)
        return {name: json.dumps(value, default=list) for name, value in fields.items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> Self:
        """The inverse of `to_metadata`. Raises ValueError where something is missing or cannot be."""
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in ['version', *names] if name not in metadata]
        if missing:
            raise ValueError(f'no {missing[0]} in its metadata')
        if json.loads(metadata['version']) != VERSION:
            raise ValueError(f'its version is {metadata["version"][:20]}, and this package reads {VERSION}')
        values = {name: json.loads(metadata[name]) for name in names}
        mean, std = (tuple(map(float, values[name])) for name in ('mean', 'std'))
        described = cls(**values | {'mean': mean, 'std': std})
        whole = (described.features, described.image_size, described.channels)
        if not all(isinstance(number, int) and number > 0 for number in whole):
            raise ValueError('features, image_size and channels must be positive')
        if len(mean) != len(std) or len(mean) not in (1, described.channels) or not all(std):
            raise ValueError('mean and std do not fit its channels')
        if described.encoder not in ENCODERS or described.output not in OUTPUTS:
            raise ValueError('its encoder or output has an unknown name')
        return described

    def build(self) -> Encoder:
        """The network. Raises ValueError for an architecture that does not exist."""
        try:
            return build_encoder(ConfigDict(self.architecture))
        except (AttributeError, TypeError, UserError) as error:
            raise ValueError(f'its architecture cannot be built: {error}') from error

    @property
    def step(self) -> int:
        """Training steps behind it."""
        return int(self.provenance['step'])

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the network that the output needs."""
        return ('backbone',) if self.output == 'backbone' else ('backbone', 'projection')

    def shapes(self) -> Variables:
        """Shapes and dtypes of those parts. Raises ValueError for an architecture that does not exist."""
        encoder, shape = self.build(), (1, self.image_size, self.image_size, self.channels)
        try:
            whole = jax.eval_shape(lambda key: encoder.init(key, jnp.zeros(shape), train=False), jax.random.key(0))
        except (TypeError, ValueError) as error:
            raise ValueError(f'its architecture does not take such images: {error}') from error
        return only_parts(whole, self.parts)


def only_parts(variables: Variables, parts: tuple[str, ...]) -> Variables:
    """The variables of some parts of an encoder, without collections that are empty then."""
    chosen = {name: {part: tree[part] for part in parts if part in tree} for name, tree in variables.items()}
    return {name: tree for name, tree in chosen.items() if tree}


def compute(description: Description, encoder: Encoder, variables: Variables, pixels: jax.Array) -> jax.Array:
    """Features float32 [N, F] of pixels float32 [N, H, W, C] in [0, 1], in evaluation mode."""
    mean, std = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (description.mean, description.std))
    images = (pixels - mean) / std
    if description.output == 'projection':
        encoded: Any = encoder.apply(variables, images, train=False)
        return encoded.projection
    backbone = {name: tree['backbone'] for name, tree in variables.items()}
    features: Any = encoder.make_backbone().apply(backbone, images, train=False)
    return features


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """An exported encoder, ready to be called on images.

    Attributes:
      description: what it is.
      function: pixels float32 [N, H, W, C] in [0, 1] to features float32 [N, F].
    """

    description: Description
    function: Callable[[jax.Array], jax.Array] = dataclasses.field(repr=False)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Features float32 [N, F] of images [N, H, W, C]: uint8, or floats in [0, 1].

        Raises:
          UserError: images of another size, number of channels or type.
        """
        side, channels = self.description.image_size, self.description.channels
        shape, dtype = np.shape(images), jnp.result_type(images)
        if len(shape) != 4 or shape[1:] != (side, side, channels):
            raise UserError(f'images of shape {shape}: this encoder takes [N, {side}, {side}, {channels}]; resize them')
        if dtype == jnp.uint8:
            return self.function(jnp.asarray(images).astype(jnp.float32) / 255.0)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(f'images of type {dtype}: use uint8, or floats in [0, 1]')
        return self.function(jnp.asarray(images).astype(jnp.float32))
