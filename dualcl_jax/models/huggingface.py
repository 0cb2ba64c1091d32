"""BERT and RoBERTa of Hugging Face's `transformers`: converts configs and tensor names from and to this project's.

A folder of such a model holds `config.json` and `model.safetensors`, JSON and plain arrays, so reading it executes no
code. Names may have the prefix of a model with another head, such as 'bert.' of BertForMaskedLM.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from dualcl_jax.models.text import TextGeometry

Tensors = dict[str, np.ndarray]

BERT, ROBERTA = 'bert', 'roberta'
FAMILY = {BERT: BERT, ROBERTA: ROBERTA, 'xlm-roberta': ROBERTA, 'camembert': ROBERTA}
"""For each `model_type` of a config, the model with the same network."""
SUPPORTED = {
    'hidden_act': ('gelu',),
    'position_embedding_type': ('absolute', None),
    'is_decoder': (False, None),
    'add_cross_attention': (False, None),
}
"""Values that fields of a config may have; None stands for an absent or empty field."""
SIZES = {
    'vocabulary': 'vocab_size',
    'layers': 'num_hidden_layers',
    'heads': 'num_attention_heads',
    'width': 'hidden_size',
    'mlp_width': 'intermediate_size',
    'max_positions': 'max_position_embeddings',
    'token_types': 'type_vocab_size',
}
"""The fields of a model config, and those of a config of `transformers`."""
BLOCK = {
    'query': 'attention.self.query',
    'key': 'attention.self.key',
    'value': 'attention.self.value',
    'proj': 'attention.output.dense',
    'norm1': 'attention.output.LayerNorm',
    'fc1': 'intermediate.dense',
    'fc2': 'output.dense',
    'norm2': 'output.LayerNorm',
}
"""The layers of a block, by their names here and in `transformers`."""
EMBEDDINGS = {'words': 'word_embeddings', 'positions': 'position_embeddings', 'types': 'token_type_embeddings'}
NORM, DENSE = {'scale': 'weight', 'bias': 'bias'}, {'kernel': 'weight', 'bias': 'bias'}
OLD_NAMES = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}
"""Names of BERT's first checkpoints."""
BUFFER = re.compile(r'embeddings\.(?:position_ids|token_type_ids)')
"""Tensors that hold constants."""


class Loaded(NamedTuple):
    """Parameters of a backbone, and the tensors of a file that have no place in it.

    Attributes:
      params: the parameters of `Transformer`, NumPy float32.
      skipped: names of tensors, such as those of a pooler or another head.
    """

    params: dict[str, Any]
    skipped: list[str]


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the fields of a model config from a config of `transformers`: the sizes, offset and ε.

    Raises:
      ValueError: the config describes another network, or a size is missing or impossible.
    """
    kind = config.get('model_type')
    if not isinstance(kind, str) or kind not in FAMILY:
        raise ValueError(f'model_type is {kind!r}; only {", ".join(FAMILY)} are supported')
    for field, allowed in SUPPORTED.items():
        if config.get(field) not in allowed:
            found = f'is {config[field]!r}' if field in config else 'is missing'
            raise ValueError(f'{field} {found}; only {allowed[0]!r} is supported')
    fields: dict[str, Any] = {name: config.get(theirs) for name, theirs in SIZES.items()}
    for name, value in fields.items():
        if type(value) is not int or value < (name != 'token_types'):
            raise ValueError(f'{SIZES[name]} is {value!r}, not a positive integer')
    if fields['width'] % fields['heads']:
        raise ValueError(f'hidden_size {fields["width"]} is not a multiple of num_attention_heads {fields["heads"]}')
    padding, epsilon = config.get('pad_token_id', 1), config.get('layer_norm_eps', 1e-12)
    if FAMILY[kind] == ROBERTA and type(padding) is not int:
        raise ValueError(f'pad_token_id is {padding!r}, not an integer')
    if type(epsilon) not in (int, float) or not epsilon > 0:
        raise ValueError(f'layer_norm_eps is {epsilon!r}, not a positive number')
    offset = padding + 1 if FAMILY[kind] == ROBERTA else 0
    return fields | {'position_offset': offset, 'norm_epsilon': float(epsilon)}


def write_config(geometry: TextGeometry, width: int, *, pad: int) -> dict[str, Any]:
    """The config of `transformers` for a network of this geometry; `pad` is the id of the padding token.

    Raises:
      ValueError: `transformers` has no such network.
    """
    if geometry.position_offset not in (0, pad + 1):
        raise ValueError(
            f'transformers counts positions from 0 or, after the padding token {pad}, from {pad + 1}, and not from '
            f'{geometry.position_offset}'
        )
    is_bert = geometry.position_offset == 0
    sizes = vars(geometry) | {'width': width}
    return {
        'model_type': BERT if is_bert else ROBERTA,
        'architectures': ['BertModel' if is_bert else 'RobertaModel'],
        **{theirs: sizes[name] for name, theirs in SIZES.items()},
        'type_vocab_size': max(geometry.token_types, 1),
        'hidden_act': 'gelu',
        'hidden_dropout_prob': geometry.dropout,
        'attention_probs_dropout_prob': geometry.dropout,
        'initializer_range': 0.02,
        'layer_norm_eps': geometry.norm_epsilon,
        'pad_token_id': pad,
        'position_embedding_type': 'absolute',
        'torch_dtype': 'float32',
    }


def _names(geometry: TextGeometry) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields each parameter's path and the name of its tensor, a transposed kernel if the path ends in 'kernel'."""
    for name, theirs in EMBEDDINGS.items():
        if name != 'types' or geometry.token_types:
            yield ('embeddings', name), f'embeddings.{theirs}.weight'
    for leaf, theirs in NORM.items():
        yield ('embeddings', 'norm', leaf), f'embeddings.LayerNorm.{theirs}'
    for index in range(geometry.layers):
        for name, layer in BLOCK.items():
            for leaf, theirs in (NORM if name.startswith('norm') else DENSE).items():
                yield (f'blocks_{index}', name, leaf), f'encoder.layer.{index}.{layer}.{theirs}'


def read_tensors(tensors: Mapping[str, np.ndarray], geometry: TextGeometry, width: int) -> Loaded:
    """Reads the parameters of `Transformer` from the tensors of a file.

    Raises:
      ValueError: a tensor is missing or has another shape.
    """
    stored = {_plain(name): name for name in tensors}
    flat = {}
    for path, name in _names(geometry):
        if name not in stored:
            raise ValueError(f'it has no tensor {name}')
        tensor, shape = np.asarray(tensors[stored[name]], np.float32), _shape(path, geometry, width)
        if tensor.shape != shape:
            raise ValueError(f'tensor {stored[name]} is {tensor.shape}, but its config.json implies {shape}')
        flat[path] = tensor.T if path[-1] == 'kernel' else tensor
    used = {name for _, name in _names(geometry)}
    skipped = sorted(name for plain, name in stored.items() if plain not in used and not BUFFER.fullmatch(plain))
    return Loaded(flax.traverse_util.unflatten_dict(flat), skipped)


def write_tensors(params: Mapping[str, Any], geometry: TextGeometry, width: int) -> Tensors:
    """The inverse of `read_tensors`, with the names of BertModel and RobertaModel."""
    flat = flax.traverse_util.flatten_dict(params)
    tensors = {}
    for path, name in _names(geometry):
        value = np.asarray(flat[path])
        tensors[name] = np.ascontiguousarray(value.T if path[-1] == 'kernel' else value)
    if not geometry.token_types:
        tensors['embeddings.token_type_embeddings.weight'] = np.zeros((1, width), np.float32)
    return tensors


def _plain(name: str) -> str:
    """The name of a tensor in BertModel or RobertaModel."""
    name = re.sub(r'^(?:bert|roberta)\.(?=embeddings\.|encoder\.|pooler\.)', '', name)
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _shape(path: tuple[str, ...], geometry: TextGeometry, width: int) -> tuple[int, ...]:
    """The shape of the tensor of a parameter."""
    layer, leaf = path[-2:]
    if layer == 'embeddings':
        rows = {'words': geometry.vocabulary, 'positions': geometry.max_positions, 'types': geometry.token_types}
        return rows[leaf], width
    outputs, inputs = {'fc1': (geometry.mlp_width, width), 'fc2': (width, geometry.mlp_width)}.get(layer, (width,) * 2)
    return (outputs, inputs) if leaf == 'kernel' else (outputs,)
