"""Models of Hugging Face: the same vectors as in PyTorch, by stored references and, where it is installed, by itself.

`tests/reference/make_huggingface.py` wrote the references.
"""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from dualcl_jax.models.huggingface import read_config, read_tensors, write_config, write_tensors
from dualcl_jax.models.text import TextGeometry
from dualcl_jax.models.transformer import Transformer
from tests.support.runs import REPOSITORY

FOLDER = REPOSITORY / 'tests/data/huggingface'
MODELS = ('bert', 'roberta')


def config_of(name):
    return json.loads((FOLDER / name / 'config.json').read_text())


def load(name):
    """The geometry, width, parameters and tensors of a stored model."""
    fields = read_config(config_of(name))
    width = fields.pop('width')
    geometry = TextGeometry(**fields, pooling='mean', dropout=0.1)
    tensors = safetensors.numpy.load_file(FOLDER / name / 'model.safetensors')
    return geometry, width, read_tensors(tensors, geometry, width), tensors


def vectors(geometry, width, params, sentences, **options):
    model = Transformer(geometry, None, '', width, **options)
    return jax.jit(lambda p, s: model.apply({'params': p}, s, method='token_vectors'))(params, sentences)


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_token_vectors_equal_those_of_pytorch(name, remat):
    geometry, width, loaded, _ = load(name)
    with np.load(FOLDER / name / 'expected.npz') as expected:
        sentences = {'tokens': expected['tokens'], 'length': expected['length']}
        inside = np.arange(12)[None] < expected['length'][:, None]
        found = np.asarray(vectors(geometry, width, loaded.params, sentences, remat=remat))
        np.testing.assert_allclose(found[inside], expected['vectors'][inside], atol=1e-5)


def test_geometry_and_skipped_tensors():
    geometry, width, loaded, _ = load('bert')
    assert (width, geometry.layers, geometry.heads, geometry.mlp_width) == (16, 2, 4, 24)
    assert (geometry.max_positions, geometry.position_offset, geometry.token_types, geometry.longest) == (16, 0, 2, 16)
    assert loaded.skipped == ['pooler.dense.bias', 'pooler.dense.weight']
    geometry, _, loaded, _ = load('roberta')
    assert (geometry.max_positions, geometry.position_offset, geometry.token_types, geometry.longest) == (18, 2, 1, 16)
    assert all(name.startswith('lm_head.') for name in loaded.skipped)


@pytest.mark.parametrize('name', MODELS)
def test_written_tensors_and_config_are_those_that_were_read(name):
    geometry, width, loaded, tensors = load(name)
    written = write_tensors(loaded.params, geometry, width)
    stored = {key.removeprefix(f'{name}.'): value for key, value in tensors.items() if key not in loaded.skipped}
    assert written.keys() == stored.keys()
    for key, value in written.items():
        np.testing.assert_array_equal(value, stored[key])
    pad = config_of(name)['pad_token_id']
    config = write_config(geometry, width, pad=pad)
    assert read_config(config) == read_config(config_of(name))
    assert config['model_type'] == name


def test_a_network_without_token_types_is_written_with_one_that_changes_nothing():
    geometry = TextGeometry(
        vocabulary=30, layers=1, heads=2, mlp_width=8, max_positions=9, position_offset=0, token_types=0,
        norm_epsilon=1e-6, pooling='cls', dropout=0.0,
    )  # fmt: skip
    sentences = {'tokens': np.arange(8, dtype=np.int32)[None], 'length': np.array([8], np.int32)}
    model = Transformer(geometry, None, '', 4)
    params = model.init(jax.random.key(0), sentences, train=False)['params']
    fields = read_config(json.loads(json.dumps(write_config(geometry, 4, pad=0))))
    other = TextGeometry(**{key: value for key, value in fields.items() if key != 'width'}, pooling='cls', dropout=0.0)
    loaded = read_tensors(write_tensors(params, geometry, 4), other, 4)
    expected = vectors(geometry, 4, params, sentences)
    np.testing.assert_array_equal(vectors(other, 4, loaded.params, sentences), expected)


def test_positions_from_another_row_cannot_be_written():
    geometry = load('roberta')[0]
    with pytest.raises(ValueError, match='counts positions from 0 or, after the padding token 0, from 1, and not from'):
        write_config(geometry, 16, pad=0)


def test_old_names_and_half_precision():
    geometry, width, loaded, tensors = load('bert')
    old = {name.replace('LayerNorm.weight', 'LayerNorm.gamma'): value for name, value in tensors.items()}
    old = {f'bert.{name.replace("LayerNorm.bias", "LayerNorm.beta")}': value for name, value in old.items()}
    again = read_tensors({name: value.astype(np.float16) for name, value in old.items()}, geometry, width)
    for found, expected in zip(jax.tree.leaves(again.params), jax.tree.leaves(loaded.params), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model_type': 'mpnet'}, "model_type is 'mpnet'; only bert, roberta"),
        ({'model_type': ['bert']}, r"model_type is \['bert'\]; only bert, roberta"),
        ({'hidden_act': 'gelu_new'}, "hidden_act is 'gelu_new'; only 'gelu'"),
        ({'position_embedding_type': 'relative_key'}, "position_embedding_type is 'relative_key'"),
        ({'is_decoder': True}, 'is_decoder is True'),
        ({'hidden_size': 0}, 'hidden_size is 0, not a positive integer'),
        ({'vocab_size': None}, 'vocab_size is None'),
        ({'num_attention_heads': 3}, 'hidden_size 16 is not a multiple of num_attention_heads 3'),
        ({'layer_norm_eps': 0}, 'layer_norm_eps is 0'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_other_networks_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        read_config(config_of('bert') | change)


@pytest.mark.parametrize('field', ['model_type', 'hidden_act', 'vocab_size', 'num_attention_heads', 'hidden_size'])
def test_a_missing_field_is_named(field):
    with pytest.raises(ValueError, match=rf'^{field} is (missing|None)'):
        read_config({name: value for name, value in config_of('bert').items() if name != field})


def test_missing_and_misshapen_tensors_are_named():
    geometry, width, _, tensors = load('bert')
    name = 'encoder.layer.1.output.dense.weight'
    with pytest.raises(ValueError, match=rf'it has no tensor {name}'):
        read_tensors({key: value for key, value in tensors.items() if key != name}, geometry, width)
    with pytest.raises(ValueError, match=rf'tensor {name} is \(24, 16\), but its config.json implies \(16, 24\)'):
        read_tensors(tensors | {name: tensors[name].T}, geometry, width)


def test_the_references_are_what_the_library_computes():
    """Runs where PyTorch and transformers are installed, in a process of its own because they warn."""
    pytest.importorskip('torch', reason='needs torch and transformers')
    pytest.importorskip('transformers', reason='needs torch and transformers')
    code = f"""
import numpy, torch, transformers
for name in {MODELS!r}:
    model = transformers.AutoModel.from_pretrained({str(FOLDER)!r} + '/' + name).eval()
    with numpy.load({str(FOLDER)!r} + f'/{{name}}/expected.npz') as expected, torch.no_grad():
        inside = numpy.arange(12)[None] < expected['length'][:, None]
        tokens, mask = torch.tensor(expected['tokens']), torch.tensor(inside).long()
        found = model(input_ids=tokens, attention_mask=mask).last_hidden_state.numpy()
        numpy.testing.assert_allclose(found, expected['vectors'], atol=1e-5)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
