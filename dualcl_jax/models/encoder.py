"""Encoders: a backbone and a projection, with batch statistics over groups of the batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.heads import PREDICTORS, PROJECTIONS, Head
from dualcl_jax.models.norm import BatchNorm
from dualcl_jax.models.resnet import STEMS, resnet18, resnet34, resnet50
from dualcl_jax.models.tiny import Tiny
from dualcl_jax.models.vit import PATCHES, vit_s16, vit_tiny
from dualcl_jax.system.errors import UserError

# Each entry takes norm, stem, width, dtype, name and, if it has blocks, remat, and maps images and `train` to float32
# features [N, F].
MODELS: dict[str, Callable[..., nn.Module]] = {
    'resnet18': resnet18,
    'resnet34': resnet34,
    'resnet50': resnet50,
    'vit_s16': vit_s16,
    'vit_tiny': vit_tiny,
    'tiny': Tiny,
}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
PRECISIONS = ('float32', 'tensorfloat32', 'bfloat16')
"""What an encoder in float32 may round the factors of its products to, where the device is faster then. CPUs round
none."""


class Encoded(NamedTuple):
    """What an encoder makes of N images: `backbone` [N, F] and `projection` [N, dim], float32, not normalised.

    Where a prediction was asked for, it stands in the place of the projection.
    """

    backbone: jax.Array
    projection: jax.Array


class Encoder(nn.Module):
    """Backbone and projection, and a predictor for queries: normalised images float32 [N, H, W, C] to `Encoded`.

    In training, the images of a device may be several groups in a row, each with its own batch statistics. Two views
    in one call are `encoder.clone(groups=2 * encoder.groups)` on the concatenation of the views, the first view first.
    The variables do not depend on `groups`, `span` or `axis_name`. Those of the predictor are under 'predictor', and
    only a call with `predict` reads them.

    Attributes:
      model: a key of `MODELS`.
      stem: 'cifar' or 'imagenet'.
      width: channels of the first stage.
      projection: a key of `PROJECTIONS`.
      predictor: a key of `PREDICTORS`.
      hidden: width of the inner layers of MoCo v3's projections and predictors.
      dim: length of a projection.
      freeze_patches: of a ViT, see `VisionTransformer`.
      remat: compute activations inside blocks again for the backward pass.
      dtype: of the computation; parameters, statistics and outputs are float32.
      matmul_precision: one of `PRECISIONS`, of convolutions and matrix products where dtype is float32.
      groups, span, axis_name: see `BatchNorm`.
    """

    model: str
    stem: str
    width: int
    projection: str
    predictor: str
    hidden: int
    dim: int
    freeze_patches: bool = True
    remat: bool = False
    dtype: Any = jnp.float32
    matmul_precision: str = 'float32'
    groups: int = 1
    span: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, predict: bool = False) -> Encoded:
        rounds = self.matmul_precision if self.dtype == jnp.float32 else None  # bfloat16 says it already
        with jax.default_matmul_precision(rounds):
            return self._encode(images, train=train, predict=predict)

    def _encode(self, images: jax.Array, *, train: bool, predict: bool) -> Encoded:
        features = self.make_backbone('backbone')(images, train=train)
        head = partial(Head, dim=self.dim, hidden=self.hidden, norm=self._norm(), dtype=self.dtype)
        projection = head(PROJECTIONS[self.projection], name='projection')(features, train=train)
        compute = PREDICTORS[self.predictor]
        if predict and compute is not None:
            projection = head(compute, name='predictor')(projection, train=train)
        return Encoded(features, projection)

    @nn.nowrap
    def make_backbone(self, name: str | None = None) -> nn.Module:
        """The backbone's module: part of this one under a name, or alone, for the variables under 'backbone'."""
        options = {'remat': True} if self.remat else {}
        if self.model in PATCHES:
            options['freeze_patches'] = self.freeze_patches
        build = partial(MODELS[self.model], **options)
        return build(norm=self._norm(), stem=self.stem, width=self.width, dtype=self.dtype, name=name)

    @nn.nowrap
    def _norm(self) -> Callable[..., nn.Module]:
        return partial(BatchNorm, groups=self.groups, span=self.span, axis_name=self.axis_name, dtype=self.dtype)


def build_encoder(model_config: Any, *, groups: int = 1, span: int = 1, axis_name: str | None = None) -> Encoder:
    """The encoder that the fields of a model config describe, those of `Encoder` and `name`, `head_width` for hidden.

    Args:
      model_config: anything with these attributes.
      groups: groups of the batch on each device, from `norm_layout`.
      span: devices that share a group, from `norm_layout`.
      axis_name: the mapped data axis; None on one device.

    Raises:
      UserError: for a field with a value that does not exist.
    """
    choices = {'name': MODELS, 'stem': STEMS, 'projection': PROJECTIONS, 'predictor': PREDICTORS, 'dtype': DTYPES}
    choices |= {'matmul_precision': PRECISIONS}
    for field, allowed in choices.items():
        value = getattr(model_config, field)
        if value not in allowed:
            raise UserError(f'model.{field}={value!r}: choose one of {", ".join(allowed)}')
    for field in ('width', 'dim', 'head_width'):
        if getattr(model_config, field) < 1:
            raise UserError(f'model.{field}={getattr(model_config, field)}: must be at least 1')
    return Encoder(
        model=model_config.name,
        stem=model_config.stem,
        width=model_config.width,
        projection=model_config.projection,
        predictor=model_config.predictor,
        hidden=model_config.head_width,
        dim=model_config.dim,
        freeze_patches=model_config.freeze_patches,
        remat=model_config.remat,
        dtype=DTYPES[model_config.dtype],
        matmul_precision=model_config.matmul_precision,
        groups=groups,
        span=span,
        axis_name=axis_name,
    )


def channels_of(params: Any, model: str) -> int:
    """Channels of the images that an encoder of these parameters sees, one of `dualcl_jax.models.encoder.MODELS`."""
    backbone = params['backbone']
    if model in PATCHES:  # each patch is a row of its pixels
        return int(backbone['patch_embed']['kernel'].shape[0]) // PATCHES[model] ** 2
    return int(backbone['conv1']['kernel'].shape[2])
