"""Exports an encoder of sentences as a folder for sentence-transformers and transformers, which need no code of ours.

A transformer becomes BertModel or RobertaModel with Pooling. A bag of words becomes StaticEmbedding, whose tokenizer
cuts sentences as in the run. A projection becomes layers of the module Dense. Embeddings are not normalised, as here.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers

from dualcl_jax.models.encoder import Variables
from dualcl_jax.models.exports.sentences import TextDescription
from dualcl_jax.models.huggingface import write_config, write_tensors
from dualcl_jax.system.errors import UserError

Files = dict[str, bytes]
"""The content of the files of a folder, by their paths in it."""

FORMAT = 'huggingface'
MODULES = 'sentence_transformers.models'
"""The module in which every version of sentence-transformers finds its modules."""
PADS, MASKS = ('[PAD]', '<pad>'), ('[MASK]', '<mask>')
MODES = {'cls': 'cls_token', 'mean': 'mean_tokens'}
"""The names of poolings here and in sentence-transformers."""
IDENTITY, RELU, TANH = 'linear.Identity', 'activation.ReLU', 'activation.Tanh'
PROJECTIONS: dict[str, dict[str, str]] = {
    'none': {},
    'linear': {'fc': IDENTITY},
    'tanh': {'fc': TANH},
    'mlp': {'fc_0': RELU, 'fc_2': IDENTITY},
}
"""The dense layers of the projections that sentence-transformers can express, and what follows each in torch.nn."""


def write_folder(description: TextDescription, variables: Variables, card: str) -> Files:
    """Makes the files of the folder.

    Args:
      description: the description of the encoder.
      variables: its variables, NumPy arrays.
      card: the text of README.md.

    Raises:
      UserError: sentence-transformers has no such network.
    """
    tokenizer, params = description.loaded_tokenizer, variables['params']
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    files, modules = {}, []
    if description.architecture['name'] == 'bag':
        tokenizer.enable_truncation(description.length - 2)  # without the first and the last token
        files['0_StaticEmbedding/tokenizer.json'] = tokenizer.to_str().encode()
        files['0_StaticEmbedding/model.safetensors'] = pack({'embedding.weight': params['backbone']['words']})
        modules.append(('StaticEmbedding', '0_StaticEmbedding'))
    else:
        tokenizer.no_truncation()
        width = description.architecture['width']
        files |= _transformer(description, params['backbone'], tokenizer)
        pooling = description.architecture['pooling']
        modes = {f'pooling_mode_{mode}': name == pooling for name, mode in MODES.items()}
        files['1_Pooling/config.json'] = to_json({'word_embedding_dimension': width} | modes)
        modules += [('Transformer', ''), ('Pooling', '1_Pooling')]
    for name, inside in _dense_layers(description, params).items():
        files |= {f'{name}/{file}': content for file, content in inside.items()}
        modules.append(('Dense', name))
    files['modules.json'] = to_json(
        [
            {'idx': index, 'name': str(index), 'path': path, 'type': f'{MODULES}.{kind}'}
            for index, (kind, path) in enumerate(modules)
        ]
    )
    files['config_sentence_transformers.json'] = to_json({'similarity_fn_name': 'cosine'})
    return files | {'README.md': card.encode()}


def _transformer(description: TextDescription, params: Mapping[str, Any], tokenizer: tokenizers.Tokenizer) -> Files:
    """The files that transformers reads, and the length of sentences."""
    geometry, width = description.build().text, description.architecture['width']
    assert geometry is not None
    special = special_tokens(tokenizer)
    pad = (tokenizer.token_to_id(special['pad_token']) or 0) if 'pad_token' in special else 0
    try:
        config = write_config(geometry, width, pad=pad)
    except ValueError as error:
        raise UserError(f'--format={FORMAT}: {error}; use safetensors or stablehlo') from error
    about = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': geometry.longest}
    about |= {'model_input_names': ['input_ids', 'attention_mask'], 'clean_up_tokenization_spaces': False}
    return {
        'config.json': to_json(config),
        'model.safetensors': pack(write_tensors(params, geometry, width)),
        'tokenizer.json': tokenizer.to_str().encode(),
        'tokenizer_config.json': to_json(about | special),
        'special_tokens_map.json': to_json(special),
        'sentence_bert_config.json': to_json({'max_seq_length': description.length, 'do_lower_case': False}),
    }


def special_tokens(tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
    """The special tokens of a tokenizer by their names in transformers, as far as it has them."""
    first, last = tokenizer.encode('').tokens
    unknown = json.loads(tokenizer.to_str())['model'].get('unk_token')
    found = {'cls_token': first, 'sep_token': last, 'unk_token': unknown}
    for name, candidates in (('pad_token', PADS), ('mask_token', MASKS)):
        found[name] = next((token for token in candidates if tokenizer.token_to_id(token) is not None), None)
    return {name: token for name, token in found.items() if token is not None}


def _dense_layers(description: TextDescription, params: Mapping[str, Any]) -> dict[str, Files]:
    """The files of each module Dense, in order."""
    kind = description.architecture['projection']
    if description.output == 'backbone':
        return {}
    if kind not in PROJECTIONS:
        raise UserError(
            f'--format={FORMAT}: sentence-transformers has no projection {kind}; leave --projection out, or use '
            'safetensors or stablehlo'
        )
    layers = {}
    for index, (name, activation) in enumerate(PROJECTIONS[kind].items()):
        kernel, bias = params['projection'][name]['kernel'], params['projection'][name]['bias']
        config = {'in_features': kernel.shape[0], 'out_features': kernel.shape[1], 'bias': True}
        layers[f'{index + 2}_Dense'] = {
            'config.json': to_json(config | {'activation_function': f'torch.nn.modules.{activation}'}),
            'model.safetensors': pack({'linear.weight': kernel.T, 'linear.bias': bias}),
        }
    return layers


def pack(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Writes a safetensors file that PyTorch reads."""
    return safetensors.numpy.save(
        {name: np.array(value, order='C') for name, value in tensors.items()}, {'format': 'pt'}
    )


def to_json(value: Any) -> bytes:
    """Writes a JSON file as transformers does."""
    return (json.dumps(value, indent=2) + '\n').encode()
