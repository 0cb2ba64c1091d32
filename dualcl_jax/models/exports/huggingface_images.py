"""Exports an encoder of images as a folder for transformers, which needs no code of ours.

A ViT becomes ViTModel, whose feature is `last_hidden_state[:, 0]`; a ConvNeXt becomes ConvNextModel, and a ResNet with
the ImageNet stem ResNetModel, whose feature is `pooler_output`. The names of the tensors are those of the checkpoints
that transformers has always read; version 5 renames those of a ViT when it loads them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from dualcl_jax.models import convnext, vit
from dualcl_jax.models.convnext import ConvNeXt
from dualcl_jax.models.encoder import Variables
from dualcl_jax.models.exports.encoder import Description
from dualcl_jax.models.exports.huggingface import FORMAT, Files, pack, to_json
from dualcl_jax.models.resnet import Bottleneck, ResNet
from dualcl_jax.models.vit import LEARNED, VisionTransformer, sine_cosine_positions
from dualcl_jax.models.weights_file import LEAVES, in_torch
from dualcl_jax.system.errors import UserError

Tensors = dict[str, np.ndarray]
Flat = Mapping[tuple[str, ...], np.ndarray]
"""Variables by their path."""
VIT_LAYERS = {
    'norm1': 'layernorm_before',
    'norm2': 'layernorm_after',
    'proj': 'attention.output.dense',
    'fc1': 'intermediate.dense',
    'fc2': 'output.dense',
}
CONVNEXT_LAYERS = {'conv_dw': 'dwconv', 'norm': 'layernorm', 'fc1': 'pwconv1', 'fc2': 'pwconv2'}
"""The layers of a block by their names here and in transformers."""


class Network(NamedTuple):
    """A class of transformers.

    Attributes:
      name: its name.
      features: the features in its output.
      convert: makes its config and its tensors from a backbone, the description of the encoder and its variables.
    """

    name: str
    features: str
    convert: Callable[[Any, Description, Flat], tuple[dict[str, Any], Tensors]]


def write_folder(description: Description, variables: Variables, card: str) -> Files:
    """Makes the files of the folder.

    Args:
      description: the description of the encoder.
      variables: its variables, NumPy arrays.
      card: the text of README.md.

    Raises:
      UserError: transformers has no such network.
    """
    backbone = description.build().make_backbone()
    config, tensors = network_of(description).convert(backbone, description, _flat(variables))
    common = {'num_channels': description.channels, 'image_size': description.image_size, 'torch_dtype': 'float32'}
    files = {
        'config.json': to_json(config | common),
        'model.safetensors': pack(tensors),
        'README.md': card.encode(),
    }
    if has_processor(description):
        files['preprocessor_config.json'] = to_json(_processor(description))
    return files


def network_of(description: Description) -> Network:
    """The class of transformers that loads the folder of an encoder.

    Raises:
      UserError: transformers has no such network.
    """
    name, backbone = description.architecture['name'], description.build().make_backbone()
    if description.output != 'backbone':
        raise UserError(f'--format={FORMAT}: models of transformers have no projection; leave --projection out')
    if isinstance(backbone, ResNet) and backbone.stem != 'imagenet':
        raise UserError(
            f'--format={FORMAT}: transformers has no {name} with the stem {backbone.stem}; use safetensors, '
            'torchvision or stablehlo'
        )
    if type(backbone) not in NETWORKS:
        raise UserError(f'--format={FORMAT}: transformers has no {name}; use safetensors or stablehlo')
    return NETWORKS[type(backbone)]


def has_processor(description: Description) -> bool:
    """Whether the image processor of transformers can prepare such images: gray or in colour, of 8 bits."""
    return description.channels in (1, 3) and not description.value_range


def _processor(description: Description) -> dict[str, Any]:
    """The config of an image processor that cuts the central square of images, as files are read here.

    transformers resizes first and then crops, by whole pixels, so that its square is displaced by less than a pixel of
    the result.
    """
    size, channels = description.image_size, description.channels
    mean, std = (list(values) * (channels if len(values) == 1 else 1) for values in (description.mean, description.std))
    return {
        'image_processor_type': 'BitImageProcessor',
        'do_resize': True,
        'size': {'shortest_edge': size},
        'resample': 2,
        'do_center_crop': True,
        'crop_size': {'height': size, 'width': size},
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': mean,
        'image_std': std,
        'do_convert_rgb': channels == 3,
    }


def _vit(network: VisionTransformer, description: Description, flat: Flat) -> tuple[dict[str, Any], Tensors]:
    dim, patch, side = network.dim, network.patch, description.image_size // network.patch
    config = {
        'model_type': 'vit',
        'architectures': ['ViTModel'],
        'hidden_size': dim,
        'num_hidden_layers': network.depth,
        'num_attention_heads': network.heads,
        'intermediate_size': 4 * dim,
        'hidden_act': 'gelu',
        'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0,
        'initializer_range': 0.02,
        'layer_norm_eps': vit.EPSILON,
        'patch_size': patch,
        'qkv_bias': True,
    }
    kernel = flat['patch_embed', 'kernel'].reshape(patch, patch, description.channels, dim)
    places = flat.get(('pos_embed',)) if network.positions == LEARNED else None
    if places is None:
        places = np.concatenate([np.zeros((1, dim), np.float32), sine_cosine_positions(side, side, dim)])
    tensors = {
        'embeddings.cls_token': flat[('cls_token',)][None, None],
        'embeddings.position_embeddings': places[None],
        'embeddings.patch_embeddings.projection.weight': in_torch(kernel),
        'embeddings.patch_embeddings.projection.bias': flat['patch_embed', 'bias'],
        'layernorm.weight': flat['norm', 'scale'],
        'layernorm.bias': flat['norm', 'bias'],
    }
    for path, value in flat.items():
        if not path[0].startswith('blocks_'):
            continue
        block, layer, leaf = f'encoder.layer.{path[0].removeprefix("blocks_")}', path[1], LEAVES[path[2]]
        value = in_torch(value)
        if layer == 'qkv':
            for name, part in zip(('query', 'key', 'value'), np.split(value, 3), strict=True):
                tensors[f'{block}.attention.attention.{name}.{leaf}'] = part
        else:
            tensors[f'{block}.{VIT_LAYERS[layer]}.{leaf}'] = value
    return config, tensors


def _convnext(network: ConvNeXt, description: Description, flat: Flat) -> tuple[dict[str, Any], Tensors]:
    config = {
        'model_type': 'convnext',
        'architectures': ['ConvNextModel'],
        'patch_size': convnext.PATCH,
        'num_stages': len(network.dims),
        'hidden_sizes': list(network.dims),
        'depths': list(network.depths),
        'hidden_act': 'gelu',
        'initializer_range': 0.02,
        'layer_norm_eps': convnext.EPSILON,
        'layer_scale_init_value': 1e-6,
        'drop_path_rate': 0.0,
    }
    tensors = {}
    for path, value in flat.items():
        first, leaf = path[0], LEAVES.get(path[-1], path[-1])
        if first == 'head_norm':
            name = f'layernorm.{leaf}'
        elif first.startswith('stem_'):
            name = f'embeddings.{("patch_embeddings", "layernorm")[int(first[-1])]}.{leaf}'
        else:
            _, stage, kind, index = first.split('_')
            if kind == 'downsample':
                name = f'encoder.stages.{stage}.downsampling_layer.{index}.{leaf}'
            else:
                layer = 'layer_scale_parameter' if leaf == 'gamma' else f'{CONVNEXT_LAYERS[path[1]]}.{leaf}'
                name = f'encoder.stages.{stage}.layers.{index}.{layer}'
        if value.ndim == 2 and (first == 'stem_0' or '_downsample_' in first):  # a convolution with its own stride
            side = convnext.PATCH if first == 'stem_0' else 2
            value = value.reshape(side, side, -1, value.shape[1])
        tensors[name] = in_torch(value)
    return config, tensors


def _resnet(network: ResNet, description: Description, flat: Flat) -> tuple[dict[str, Any], Tensors]:
    bottleneck = network.block is Bottleneck
    config = {
        'model_type': 'resnet',
        'architectures': ['ResNetModel'],
        'embedding_size': network.width,
        'hidden_sizes': [network.width * network.block.expansion * 2**stage for stage in range(4)],
        'depths': list(network.depths),
        'layer_type': 'bottleneck' if bottleneck else 'basic',
        'hidden_act': 'relu',
        'downsample_in_first_stage': False,
        'downsample_in_bottleneck': False,
    }
    tensors: Tensors = {}
    for path, value in flat.items():
        kind, inner = ('convolution' if path[-1] == 'kernel' else 'normalization'), path[-2]
        if len(path) == 2:
            place = 'embedder.embedder'
        else:
            stage, index = path[0].removeprefix('layer').split('_')
            place = f'encoder.stages.{int(stage) - 1}.layers.{index}.'
            place += 'shortcut' if inner.startswith('downsample') else f'layer.{int(inner[-1]) - 1}'
        tensors[f'{place}.{kind}.{LEAVES[path[-1]]}'] = in_torch(value)
        if path[-1] == 'var':
            tensors[f'{place}.{kind}.num_batches_tracked'] = np.asarray(description.step, np.int64)
    return config, tensors


NETWORKS: dict[type, Network] = {
    VisionTransformer: Network('ViTModel', 'last_hidden_state[:, 0]', _vit),
    ConvNeXt: Network('ConvNextModel', 'pooler_output', _convnext),
    ResNet: Network('ResNetModel', 'pooler_output[:, :, 0, 0]', _resnet),
}
"""The class of transformers for each class of backbone."""


def _flat(variables: Variables) -> dict[tuple[str, ...], np.ndarray]:
    """The variables of the backbone by their path in it."""
    return {
        path: np.asarray(value)
        for tree in variables.values()
        for path, value in flax.traverse_util.flatten_dict(tree['backbone']).items()
    }
