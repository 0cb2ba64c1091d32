"""Describes a run in words: its data, views, encoder, loss and negatives."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dualcl_jax.data import Source, Splits, example_spec
from dualcl_jax.data.describe import describe_data, units
from dualcl_jax.method.build import Method
from dualcl_jax.method.negatives.selectors import find_selector
from dualcl_jax.method.views.images import ImageViews
from dualcl_jax.method.views.text import TextViews
from dualcl_jax.models.encoder import MODELS
from dualcl_jax.models.resnet import RESNETS
from dualcl_jax.models.vit import PATCHES
from dualcl_jax.system.kinds import IMAGES, TEXT

FIXED_WIDTH = (*PATCHES, 'convnext_t')
"""The models that do not use `model.width`."""


def describe_method(config: ConfigDict, method: Method, splits: Splits, params: optax.Params) -> dict[str, str]:
    """Describes the data, views, encoder, loss and negatives of a run, each in one line."""
    train, test = splits
    views = method.views
    if isinstance(views, ImageViews):
        shown = f'{config.views.preset}, {views.size}×{views.size}{_without_colours(views)}'
    else:
        shown = f'{config.views.preset}, {views.describe()}' if isinstance(views, TextViews) else ''
    labels = f'{len(train.class_names)} classes' if train.class_names else 'no labels'
    return {
        'data': f'{train.name}, {len(train):,} {_examples(train)}, {labels}'
        + (f'; {len(test):,} for {"validation" if config.data.validation_fraction else "testing"}' if test else ''),
        **describe_data(splits),
        **_values(config, views),
        'views': shown or _shapes(jax.tree.map(lambda leaf: leaf[0], views.blank())),
        **describe_training(config, method, train.kind, params),
    }


def describe_training(config: ConfigDict, method: Method, kind: str, params: optax.Params) -> dict[str, str]:
    """Describes the encoder, loss and negatives of a run on examples of a kind, each in one line."""
    model = config.model
    projection = 'no projection' if model.projection == 'none' else f'{model.projection} projection to {method.dim}'
    predictor = '' if model.predictor == 'none' else f', {model.predictor} predictor'
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    orders = 'both view orders' if method.symmetric else 'one way'
    return {
        'encoder': f'{_backbone(model)}, {projection}{predictor}; {count:,} parameters, {model.dtype}',
        'loss': f'{orders}, τ {method.temperature:g}{_key_term(method)}',
        'negatives': _negatives(config, method, 'image' if kind == IMAGES else kind),
    }


def _backbone(model: ConfigDict) -> str:
    """Describes a backbone by its name and the fields of the config that it uses."""
    width = '' if model.name in FIXED_WIDTH else f', width {model.width}'
    stem = '' if model.name in MODELS and model.name not in RESNETS else f', {model.stem} stem'
    text = f', {model.layers} layers, pooling {model.pooling}' if model.name == 'transformer' else ''
    return f'{model.name}{width}{stem}{text}'


def _key_term(method: Method) -> str:
    """Describes the term anchored at the key; empty if the loss has none."""
    if not method.key_weight:
        return ''
    against = 'the selected keys' if method.key_term == 'queue' else 'all other queries of the batch, equally weighted'
    return f', key term at {method.key_weight:g} against {against}'


def _negatives(config: ConfigDict, method: Method, noun: str) -> str:
    """Describes the negatives of the query, and how many the selector can choose from enough candidates."""
    if method.key_weight == 1 and method.key_term == 'batch':
        return 'those of the key term alone'
    negatives, candidates = config.negatives, method.queue_size or config.train.batch_size - 1
    skipped = negatives.skip if 'skip' in find_selector(negatives.selector).fields else 0
    counts = [method.num_negatives]
    if method.count_negatives is not None:
        counts.insert(0, int(method.count_negatives(jnp.int32(0))))
    shown = ' to '.join(str(min(count, candidates - skipped)) for count in counts)
    chosen = 'all allowed' if negatives.selector == 'all' else f'{negatives.selector} {shown}'
    kind_of_queue = 'a sharded queue' if method.queue_axis else 'a queue'
    pool = f'{kind_of_queue} of {method.queue_size:,}' if method.queue_size else 'the other keys of the batch'
    return (
        chosen
        + (f' ({negatives.schedule})' if method.count_negatives is not None else '')
        + (f' after the {skipped:,} hardest' if skipped else '')
        + f' of {pool}'
        + (f', weighted by hardness, β {method.hardness:g}' if method.hardness else '')
        + (f', no {"older" if method.queue_size else "other"} key of the same {noun}' if method.mask_same_image else '')
    )


def _without_colours(views: ImageViews) -> str:
    """Describes the operations of the recipe that the views skip."""
    return f'; {", ".join(views.skipped)} skipped: they need red, green and blue' if views.skipped else ''


def _values(config: ConfigDict, views: Any) -> dict[str, str]:
    """Describes how the values of images read as stored enter the encoder, and how pictures show them."""
    if not isinstance(views, ImageViews) or not config.data.channels:
        return {}
    low, high = views.value_range or (0, 255)
    mean, std = (', '.join(f'{value:.4g}' for value in values) for values in (views.mean, views.std))
    shown = 'the first three channels' if views.channels > 3 else 'the first channel' if views.channels == 2 else ''
    stretched = 'each stretched to its own range' if views.value_range else ''
    pictures = '; pictures show ' + (', '.join(filter(None, (shown, stretched)))) if shown or stretched else ''
    return {'values': f'{low:g} to {high:g} become 0 to 1; mean {mean}; standard deviation {std}{pictures}'}


def _examples(train: Source) -> str:
    """Describes the examples of a split."""
    example = example_spec(train)
    if train.kind == TEXT:
        return 'pairs of sentences' if example['tokens'].shape[0] == 2 else 'sentences'
    return f'{units(train.kind)} {_shapes(example)}'


def _shapes(example: Any) -> str:
    """The shape of each array of an example, such as 32×32×3."""
    return ', '.join('×'.join(map(str, leaf.shape)) or '1' for leaf in jax.tree.leaves(example))
