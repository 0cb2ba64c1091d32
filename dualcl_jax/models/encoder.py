"""Encoders: a backbone and a projection, with batch statistics over groups of the batch."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models import convnext
from dualcl_jax.models.heads import PREDICTORS, PROJECTIONS, Head
from dualcl_jax.models.norm import BatchNorm
from dualcl_jax.models.resnet import RESNETS, STEMS
from dualcl_jax.models.text import FIELDS as TEXT_FIELDS
from dualcl_jax.models.text import Bag, TextGeometry
from dualcl_jax.models.tiny import Tiny
from dualcl_jax.models.transformer import Transformer
from dualcl_jax.models.vit import PATCHES, POSITIONS, SINE_COSINE, VITS
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.user_modules import find_own

# Each entry takes norm, stem, width, dtype, name and, if it has blocks, remat; those of `TEXT_MODELS` also take
# geometry. It maps a view, such as images, and `train` to float32 features [N, F].
MODELS: dict[str, Callable[..., nn.Module]] = {
    **RESNETS,
    **VITS,
    'convnext_t': convnext.convnext_t,
    'tiny': Tiny,
    'bag': Bag,
    'transformer': Transformer,
}
TEXT_MODELS = ('bag', 'transformer')
"""The models that take sentences, see `dualcl_jax.models.text`."""
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
FIELDS = (
    'name', 'stem', 'width', 'norm', 'projection', 'predictor', 'head_width', 'dim', 'freeze_patches', 'remat', 'dtype',
    'matmul_precision', 'positions', *TEXT_FIELDS,
)  # fmt: skip
"""The fields of a model config."""
PRECISIONS = ('float32', 'tensorfloat32', 'bfloat16')
"""Precisions to which a float32 encoder may round the factors of its products on devices that are faster that way. CPUs
never round them."""
Variables = dict[str, Any]
"""Variables of an `Encoder` by collection, or those of one collection: trees of arrays."""


class Encoded(NamedTuple):
    """The output of an encoder for N views: `backbone` [N, F] and `projection` [N, dim], float32, not normalised.

    If a prediction was requested, `projection` holds the prediction.
    """

    backbone: jax.Array
    projection: jax.Array


class Encoder(nn.Module):
    """Backbone and projection, and a predictor for queries: N views to `Encoded`.

    Views are normalised images float32 [N, H, W, C], or the tree of arrays [N, ...] that another kind of model takes.
    In training, the views of a device may form several consecutive groups, each with its own batch statistics. To
    encode two views in one call, use `encoder.clone(groups=2 * encoder.groups)` on the concatenated views, the first
    view first. The variables do not depend on `groups`, `span` or `axis_name`. Those of the predictor are under
    'predictor', and only a call with `predict` reads them.

    Attributes:
      model: a key of `MODELS`, or 'module:Class' of a network of the user's own, see `find_model`.
      stem: 'cifar' or 'imagenet'.
      width: channels of the first stage.
      projection: a key of `PROJECTIONS`.
      predictor: a key of `PREDICTORS`.
      hidden: width of the inner layers of MoCo v3's projections and predictors.
      dim: length of a projection.
      freeze_patches: for a ViT, see `VisionTransformer`.
      positions: for a ViT, one of `POSITIONS`.
      remat: recompute activations inside blocks in the backward pass.
      dtype: the dtype of the computation; parameters, statistics and outputs are float32.
      matmul_precision: one of `PRECISIONS`, for convolutions and matrix products if dtype is float32.
      text: the geometry of a model in `TEXT_MODELS`; None for others.
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
    positions: str = SINE_COSINE
    remat: bool = False
    dtype: Any = jnp.float32
    matmul_precision: str = 'float32'
    text: TextGeometry | None = None
    groups: int = 1
    span: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, views: Any, *, train: bool, predict: bool = False) -> Encoded:
        rounds = self.matmul_precision if self.dtype == jnp.float32 else None  # with bfloat16 the dtype decides
        with jax.default_matmul_precision(rounds):
            return self._encode(views, train=train, predict=predict)

    def _encode(self, views: Any, *, train: bool, predict: bool) -> Encoded:
        features = self.make_backbone('backbone')(views, train=train)
        head = partial(Head, dim=self.dim, hidden=self.hidden, norm=self._norm(), dtype=self.dtype)
        projection = head(PROJECTIONS[self.projection], name='projection')(features, train=train)
        compute = PREDICTORS[self.predictor]
        if predict and compute is not None:
            projection = head(compute, name='predictor')(projection, train=train)
        return Encoded(features, projection)

    @nn.nowrap
    def make_backbone(self, name: str | None = None) -> nn.Module:
        """Makes the backbone: a submodule if it has a name, else a module of its own for the 'backbone' variables."""
        options: dict[str, Any] = {'remat': True} if self.remat else {}
        if self.model in PATCHES:
            options |= {'freeze_patches': self.freeze_patches, 'positions': self.positions}
        if self.text is not None:
            options['geometry'] = self.text
        build = partial(find_model(self.model), **options)
        return build(norm=self._norm(), stem=self.stem, width=self.width, dtype=self.dtype, name=name)

    @nn.nowrap
    def _norm(self) -> Callable[..., nn.Module]:
        return partial(BatchNorm, groups=self.groups, span=self.span, axis_name=self.axis_name, dtype=self.dtype)


def find_model(name: str) -> Callable[..., nn.Module]:
    """The function or class that makes a backbone, called as the entries of `MODELS` are.

    Args:
      name: a key of `MODELS`, or 'module:Class' of a module that the program has imported. It is never imported here,
        see `dualcl_jax.system.user_modules.find_own`.

    Raises:
      UserError: there is no such model, or it cannot be made like those of `MODELS`.
    """
    if name in MODELS:
        return MODELS[name]
    found = find_own('model.name', name, MODELS, 'MODULE:CLASS', _is_module, 'Flax module')
    try:
        inspect.signature(found).bind(norm=None, stem='', width=0, dtype=None, name=None)
        inspect.signature(found.__call__).bind(None, None, train=True)
    except TypeError as error:
        raise UserError(
            f'model.name={name!r}: must be made from norm, stem, width and dtype, and called with images and train '
            f'({error}); docs/python.md has an example'
        ) from error
    return found


def _is_module(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def takes_remat(name: str) -> bool:
    """Whether a model, see `find_model`, has blocks that it can recompute: whether it takes `remat`."""
    return 'remat' in inspect.signature(find_model(name)).parameters


def build_encoder(model_config: Any, *, groups: int = 1, span: int = 1, axis_name: str | None = None) -> Encoder:
    """Builds the encoder that a model config describes.

    Args:
      model_config: anything with the attributes of `Encoder`, but `name` instead of `model` and `head_width` instead
        of `hidden`, and the fields of `TextGeometry` for a model in `TEXT_MODELS`.
      groups: groups of the batch on each device, from `norm_layout`.
      span: devices that share a group, from `norm_layout`.
      axis_name: the mapped data axis; None on one device.

    Raises:
      UserError: a field has an invalid value.
    """
    find_model(model_config.name)
    choices: dict[str, Any] = {'stem': STEMS, 'positions': POSITIONS, 'projection': PROJECTIONS}
    choices |= {'predictor': PREDICTORS, 'dtype': DTYPES, 'matmul_precision': PRECISIONS}
    for field, allowed in choices.items():
        value = getattr(model_config, field)
        if value not in allowed:
            raise UserError(f'model.{field}={value!r}: choose one of {", ".join(allowed)}')
    for field in ('width', 'dim', 'head_width'):
        if getattr(model_config, field) < 1:
            raise UserError(f'model.{field}={getattr(model_config, field)}: must be at least 1')
    text = TextGeometry.of(model_config) if model_config.name in TEXT_MODELS else None
    if text is not None and text.vocabulary < 1:
        raise UserError(f'model.vocabulary={text.vocabulary}: must be the number of tokens of the tokenizer')
    return Encoder(
        model=model_config.name,
        stem=model_config.stem,
        width=model_config.width,
        projection=model_config.projection,
        predictor=model_config.predictor,
        hidden=model_config.head_width,
        dim=model_config.dim,
        freeze_patches=model_config.freeze_patches,
        positions=model_config.positions,
        remat=model_config.remat,
        dtype=DTYPES[model_config.dtype],
        matmul_precision=model_config.matmul_precision,
        text=text,
        groups=groups,
        span=span,
        axis_name=axis_name,
    )


def channels_of(params: Any, model: str) -> int:
    """The number of input channels of an image encoder with these parameters; `model` is a key of `MODELS`."""
    backbone = params['backbone']
    if model in PATCHES:  # a row of the kernel for each pixel of a patch and channel
        return int(backbone['patch_embed']['kernel'].shape[0]) // PATCHES[model] ** 2
    if 'stem_0' in backbone:  # of a ConvNeXt, likewise
        return int(backbone['stem_0']['kernel'].shape[0]) // convnext.PATCH**2
    return int(backbone['conv1']['kernel'].shape[2])
