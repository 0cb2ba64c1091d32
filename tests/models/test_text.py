"""Encoders of sentences: shapes, padding, and errors of the config."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.models.encoder import build_encoder
from dualcl_jax.models.text import first_token, masked_mean
from dualcl_jax.system.errors import UserError

FIELDS = {
    'name': 'bag', 'stem': 'cifar', 'width': 8, 'projection': 'linear', 'dim': 4, 'dtype': 'float32',
    'predictor': 'none', 'head_width': 16, 'freeze_patches': True, 'remat': False, 'matmul_precision': 'float32',
    'vocabulary': 50, 'layers': 2, 'heads': 2, 'mlp_width': 16, 'positions': 12, 'position_offset': 0,
    'token_types': 2, 'norm_epsilon': 1e-12, 'pooling': 'mean', 'dropout': 0.1,
}  # fmt: skip


def make(**fields):
    return build_encoder(SimpleNamespace(**{**FIELDS, **fields}))


def sentences(lengths=(3, 5, 1), longest=6):
    tokens = np.random.default_rng(0).integers(50, size=(len(lengths), longest), dtype=np.int32)
    return {'tokens': tokens, 'length': np.array(lengths, np.int32)}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_outputs_and_variables_are_float32(dtype):
    encoder = make(dtype=dtype)
    encoded, variables = encoder.init_with_output(jax.random.key(0), sentences(), train=True)
    assert encoded.backbone.shape == (3, 8)
    assert encoded.projection.shape == (3, 4)
    assert {leaf.dtype for leaf in jax.tree.leaves((encoded, variables))} == {jnp.dtype('float32')}


def test_what_follows_a_sentence_is_not_read():
    encoder, batch = make(), sentences()
    variables = encoder.init(jax.random.key(0), batch, train=False)
    other = batch['tokens'].copy()
    for row, length in zip(other, batch['length'], strict=True):
        row[length:] = 7
    changed = encoder.apply(variables, batch | {'tokens': other}, train=False)
    np.testing.assert_array_equal(encoder.apply(variables, batch, train=False).backbone, changed.backbone)


def test_a_bag_is_the_mean_of_its_embeddings():
    encoder, batch = make(), sentences()
    variables = encoder.init(jax.random.key(0), batch, train=False)
    table = np.asarray(variables['params']['backbone']['words'])
    pairs = zip(batch['tokens'], batch['length'], strict=True)
    expected = [table[tokens[:length]].mean(axis=0) for tokens, length in pairs]
    np.testing.assert_allclose(encoder.apply(variables, batch, train=False).backbone, expected, atol=1e-6)


def test_pooling():
    vectors = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    length = jnp.array([2, 4, 0])
    mean = masked_mean(jnp.asarray(vectors), length)
    np.testing.assert_allclose(mean, [vectors[0, :2].mean(0), vectors[1].mean(0), [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(first_token(jnp.asarray(vectors), length), vectors[:, 0])


def test_a_text_model_needs_a_vocabulary():
    with pytest.raises(UserError, match=r'model\.vocabulary=0: must be the number of tokens'):
        make(vocabulary=0)
