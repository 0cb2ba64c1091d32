"""Encoders: a backbone and a projection, with batch statistics over groups of the batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.errors import UserError
from dualcl_jax.models.heads import PROJECTIONS, Projection
from dualcl_jax.models.norm import BatchNorm, norm_layout
from dualcl_jax.models.resnet import STEMS, resnet18, resnet34, resnet50
from dualcl_jax.models.tiny import Tiny

__all__ = [
    'DTYPES',
    'MODELS',
    'PROJECTIONS',
    'STEMS',
    'BatchNorm',
    'Encoded',
    'Encoder',
    'build_encoder',
    'norm_layout',
]

# Each entry takes norm, stem, width, dtype and name, and maps images and `train` to float32 features [N, F].
MODELS: dict[str, Callable[..., nn.Module]] = {
    'resnet18': resnet18,
    'resnet34': resnet34,
    'resnet50': resnet50,
    'tiny': Tiny,
}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class Encoded(NamedTuple):
    """What an encoder makes of N images: `backbone` [N, F] and `projection` [N, dim], float32, not normalised."""

    backbone: jax.Array
    projection: jax.Array


class Encoder(nn.Module):
    """Backbone and projection: normalised images float32 [N, H, W, C] to `Encoded`.

    In training, the images of a device may be several groups in a row, each with its own batch statistics. Two views
    in one call are `encoder.clone(groups=2 * encoder.groups)` on the concatenation of the views, the first view first.
    The variables do not depend on `groups`, `span` or `axis_name`.

    Attributes:
      model: a key of `MODELS`.
      stem: 'cifar' or 'imagenet'.
      width: channels of the first stage.
      projection: a key of `PROJECTIONS`.
      dim: length of a projection.
      dtype: of the computation; parameters, statistics and outputs are float32.
      groups, span, axis_name: see `BatchNorm`.
    """

    model: str
    stem: str
    width: int
    projection: str
    dim: int
    dtype: Any = jnp.float32
    groups: int = 1
    span: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Encoded:
        norm = partial(BatchNorm, groups=self.groups, span=self.span, axis_name=self.axis_name, dtype=self.dtype)
        backbone = MODELS[self.model](norm=norm, stem=self.stem, width=self.width, dtype=self.dtype, name='backbone')
        features = backbone(images, train=train)
        project = Projection(self.projection, self.dim, norm, self.dtype, name='projection')
        return Encoded(features, project(features, train=train))


def build_encoder(model_config: Any, *, groups: int = 1, span: int = 1, axis_name: str | None = None) -> Encoder:
    """The encoder that the fields `name`, `stem`, `width`, `projection`, `dim` and `dtype` of a model config describe.

    Args:
      model_config: anything with these attributes.
      groups: groups of the batch on each device, from `norm_layout`.
      span: devices that share a group, from `norm_layout`.
      axis_name: the mapped data axis; None on one device.

    Raises:
      UserError: for a field with a value that does not exist.
    """
    choices = {'name': MODELS, 'stem': STEMS, 'projection': PROJECTIONS, 'dtype': DTYPES}
    for field, allowed in choices.items():
        value = getattr(model_config, field)
        if value not in allowed:
            raise UserError(f'model.{field}={value!r}: choose one of {", ".join(allowed)}')
    for field in ('width', 'dim'):
        if getattr(model_config, field) < 1:
            raise UserError(f'model.{field}={getattr(model_config, field)}: must be at least 1')
    return Encoder(
        model=model_config.name,
        stem=model_config.stem,
        width=model_config.width,
        projection=model_config.projection,
        dim=model_config.dim,
        dtype=DTYPES[model_config.dtype],
        groups=groups,
        span=span,
        axis_name=axis_name,
    )
