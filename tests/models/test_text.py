"""Encoders of sentences: shapes, padding, gradients, and errors of the config."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.models.encoder import build_encoder
from dualcl_jax.models.text import add_rows, add_sorted_rows, first_token, look_up, masked_mean
from dualcl_jax.models.transformer import product
from dualcl_jax.system.errors import UserError
from tests.support.config_parts import model_config

FIELDS = {
    'name': 'bag', 'width': 8, 'projection': 'linear', 'dim': 4, 'head_width': 16, 'vocabulary': 50, 'layers': 1,
    'heads': 2, 'mlp_width': 16, 'max_positions': 12,
}  # fmt: skip


def make(**fields):
    return build_encoder(model_config(**FIELDS | fields))


def sentences(lengths=(3, 5, 2), longest=6):
    tokens = np.random.default_rng(0).integers(50, size=(len(lengths), longest), dtype=np.int32)
    return {'tokens': tokens, 'length': np.array(lengths, np.int32)}


def init(encoder, batch):
    return jax.jit(lambda key: encoder.init(key, batch, train=True))(jax.random.key(0))


def apply(encoder, variables, batch, train=False):
    return jax.jit(lambda v, b: encoder.apply(v, b, train=train))(variables, batch)


NAMES = ('bag', 'transformer')


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_outputs_and_variables_are_float32(name, dtype):
    encoder = make(name=name, dtype=dtype)
    variables = init(encoder, sentences())
    encoded = apply(encoder, variables, sentences(), train=True)
    assert encoded.backbone.shape == (3, 8)
    assert encoded.projection.shape == (3, 4)
    assert {leaf.dtype for leaf in jax.tree.leaves((encoded, variables))} == {jnp.dtype('float32')}


@pytest.mark.parametrize(('name', 'pooling'), [('bag', 'mean'), ('transformer', 'mean'), ('transformer', 'cls')])
def test_what_follows_a_sentence_is_not_read(name, pooling):
    encoder, batch = make(name=name, pooling=pooling), sentences()
    variables = init(encoder, batch)
    other = batch['tokens'].copy()
    for row, length in zip(other, batch['length'], strict=True):
        row[length:] = 7
    changed = apply(encoder, variables, batch | {'tokens': other}, train=False)
    np.testing.assert_array_equal(apply(encoder, variables, batch, train=False).backbone, changed.backbone)


def test_a_bag_is_the_mean_of_its_embeddings():
    encoder, batch = make(), sentences()
    variables = init(encoder, batch)
    table = np.asarray(variables['params']['backbone']['words'])
    pairs = zip(batch['tokens'], batch['length'], strict=True)
    expected = [table[tokens[1 : length - 1]].sum(axis=0) / max(length - 2, 1) for tokens, length in pairs]
    np.testing.assert_allclose(apply(encoder, variables, batch, train=False).backbone, expected, atol=1e-6)


def test_pooling():
    vectors = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    length = jnp.array([2, 4, 0])
    mean = masked_mean(jnp.asarray(vectors), length)
    np.testing.assert_allclose(mean, [vectors[0, :2].mean(0), vectors[1].mean(0), [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(first_token(jnp.asarray(vectors), length), vectors[:, 0])


def test_a_text_model_needs_a_vocabulary():
    with pytest.raises(UserError, match=r'model\.vocabulary=0: must be the number of tokens'):
        make(vocabulary=0)


def with_dropout(batch, seed=0):
    count = len(batch['length'])
    return batch | {'dropout': np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), count)))}


def test_dropout_of_a_sentence_does_not_depend_on_the_batch():
    encoder, batch = make(name='transformer'), with_dropout(sentences())
    variables = init(encoder, batch)
    whole = apply(encoder, variables, batch, train=True).backbone
    one = apply(encoder, variables, {name: leaf[1:2] for name, leaf in batch.items()}, train=True).backbone
    np.testing.assert_allclose(one[0], whole[1], atol=1e-6)
    other = apply(encoder, variables, with_dropout(batch, seed=1), train=True).backbone
    assert not np.allclose(whole, other, atol=1e-3)
    del batch['dropout']
    plain = apply(encoder, variables, batch, train=True).backbone
    np.testing.assert_array_equal(plain, apply(encoder, variables, batch, train=False).backbone)
    none = apply(make(name='transformer', dropout=0.0), variables, with_dropout(batch), train=True).backbone
    np.testing.assert_array_equal(plain, none)


def test_remat_changes_no_gradient():
    batch = with_dropout(sentences())
    variables = init(make(name='transformer'), batch)

    def gradient(encoder):
        def loss(params):
            return jnp.sin(encoder.apply({'params': params}, batch, train=True).projection).sum()

        return jax.jit(jax.grad(loss))(variables['params'])

    plain, again = (gradient(make(name='transformer', remat=remat)) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_product_has_the_gradient_of_a_matrix_product():
    rng = np.random.default_rng(0)
    x, kernel, weights = (jnp.asarray(rng.normal(size=size)) for size in ((5, 3), (3, 4), (5, 4)))
    found = jax.grad(lambda x, kernel: (product(x, kernel, None) * weights).sum(), (0, 1))(x, kernel)
    expected = jax.grad(lambda x, kernel: ((x @ kernel) * weights).sum(), (0, 1))(x, kernel)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_gradient_of_a_table_is_that_of_rows_by_token():
    rng = np.random.default_rng(0)
    places = jnp.asarray(np.append(rng.integers(6, size=40), [7, 7]), jnp.int32)
    rows = jnp.asarray(rng.normal(size=(42, 3)), jnp.float32)
    expected = np.eye(8)[places].T @ np.asarray(rows, np.float64)
    for add in (add_rows, add_sorted_rows):
        np.testing.assert_allclose(add(rows, places, size=8), expected, atol=1e-5)
    tokens, weights = places.reshape(6, 7), rows.reshape(6, 7, 3)
    found = jax.grad(lambda table: (look_up(table, tokens) * weights).sum())(jnp.ones((8, 3)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_gradient_of_a_frequent_token_has_the_precision_of_bfloat16():
    rows, places = jnp.ones((5000, 3), jnp.bfloat16), jnp.zeros(5000, jnp.int32).at[0].set(1)
    for add in (add_rows, add_sorted_rows):
        found = add(rows, places, size=2)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), [[4999.0] * 3, [1.0] * 3], rtol=0.01)


@pytest.mark.parametrize('name', NAMES)
def test_the_gradient_has_no_order_that_varies_on_gpus(name):
    """As `tests/step/test_scatters.py` for whole steps."""
    encoder, batch = make(name=name), with_dropout(sentences())
    params = jax.eval_shape(lambda: encoder.init(jax.random.key(0), batch, train=True))['params']

    def loss(params):
        return encoder.apply({'params': params}, batch, train=True).projection.sum()

    text = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=('cuda',)).as_text()
    unique = re.findall(r'"stablehlo\.scatter".*?unique_indices = (\w+)', text, flags=re.DOTALL)
    assert len(unique) == text.count('"stablehlo.scatter"') >= 1
    assert set(unique) == {'true'}
