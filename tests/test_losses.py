"""Compares the losses with float64 NumPy and their gradients with central differences, and checks their edge cases."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.losses import (
    Selection,
    chance_level,
    cosine,
    cross_entropy,
    dual_view_loss,
    info_nce,
    normalize,
    select_all,
    select_top_k,
)
from dualcl_jax.method.negatives.queue import empty_queue, valid
from dualcl_jax.method.negatives.selectors import SELECTORS

B, D, K = 4, 3, 9


def unit_rows(*shape, seed=0):
    rows = np.random.default_rng(seed).normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def expected_losses(anchors, positives, negatives, allowed, temperature, k=None):
    """The losses [B] float64, anchor by anchor, directly from the formula."""
    losses = []
    for anchor, positive, mask in zip(anchors, positives, allowed, strict=True):
        similarities = np.sort((negatives @ anchor)[mask])[::-1][:k]
        logits = np.array([positive @ anchor, *similarities]) / temperature
        losses.append(np.logaddexp.reduce(logits) - logits[0])
    return np.array(losses)


def numerical_gradient(function, array, change=1e-6):
    """Central differences of a scalar function of a float64 array."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[index] += change
        down[index] -= change
        gradient[index] = (function(up) - function(down)) / (2 * change)
    return gradient


def assert_gradients(loss, expected, arguments, rtol=1e-4):
    """`loss` in float32 JAX and `expected` in float64 NumPy agree in value and in the gradient of every argument."""
    places = tuple(range(len(arguments)))
    value, gradients = jax.jit(jax.value_and_grad(loss, places))(*[jnp.float32(a) for a in arguments])
    arguments = [np.float64(np.float32(a)) for a in arguments]
    np.testing.assert_allclose(value, expected(*arguments), rtol=1e-5)
    for place, gradient in enumerate(gradients):
        moved = numerical_gradient(
            lambda x, place=place: expected(*arguments[:place], x, *arguments[place + 1 :]), arguments[place]
        )
        np.testing.assert_allclose(gradient, moved, rtol=rtol, atol=rtol * np.abs(moved).max())


def some_allowed(seed=1):
    allowed = np.random.default_rng(seed).random((B, K)) < 0.6
    allowed[1] = False
    allowed[2] = True
    return allowed


def jnp32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize('temperature', [0.05, 0.2, 1.0])
@pytest.mark.parametrize('k', [None, 3])
def test_info_nce_and_its_gradients(temperature, k):
    allowed = some_allowed()
    select, number = (select_all, 0) if k is None else (select_top_k, k)

    def loss(anchors, positives, negatives):
        arguments = (anchors, positives, negatives, jnp.asarray(allowed))
        return info_nce(*arguments, temperature=temperature, select=select, k=number).loss.mean()

    def expected(anchors, positives, negatives):
        return expected_losses(anchors, positives, negatives, allowed, temperature, k).mean()

    assert_gradients(loss, expected, [unit_rows(B, D), unit_rows(B, D, seed=1), unit_rows(K, D, seed=2)])


def reweighted_losses(anchors, positives, negatives, allowed, temperature, hardness):
    """The losses [B] float64 of 2010.04592, anchor by anchor: each negative times N·exp(β·s/τ) / Σ exp(β·s/τ)."""
    losses = []
    for anchor, positive, mask in zip(anchors, positives, allowed, strict=True):
        similarities = (negatives @ anchor)[mask]
        weights = np.exp(hardness * similarities / temperature)
        weights *= mask.sum() / max(weights.sum(), 1e-300)
        reweighted = (weights * np.exp(similarities / temperature)).sum()
        losses.append(np.log1p(reweighted / np.exp(positive @ anchor / temperature)))
    return np.array(losses)


@pytest.mark.parametrize('hardness', [0.5, 2.0])
@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_negatives_reweighted_by_hardness(temperature, hardness):
    """One anchor has no negatives. Equal similarities have weight 1, so that the chance level stays the same."""
    allowed = some_allowed()

    def loss(anchors, positives, negatives):
        arguments = (anchors, positives, negatives, jnp.asarray(allowed))
        return info_nce(*arguments, temperature=temperature, hardness=hardness).loss.mean()

    def expected(anchors, positives, negatives):
        return reweighted_losses(anchors, positives, negatives, allowed, temperature, hardness).mean()

    assert_gradients(loss, expected, [unit_rows(B, D), unit_rows(B, D, seed=1), unit_rows(K, D, seed=2)])
    same = cross_entropy(jnp.full(B, 0.3), jnp.full((B, K), 0.3), temperature, None, hardness)
    np.testing.assert_allclose(same, np.log(1 + K), rtol=1e-6)


def test_large_logits_stay_finite_when_reweighted():
    value, gradient = jax.value_and_grad(lambda n: cross_entropy(jnp.zeros(1), n, 1e-3, None, 2.0).sum())(
        jnp.array([[1.0, 0.9, -jnp.inf]])
    )
    np.testing.assert_allclose(value, 1000 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[1000.0, 0.0, 0.0]], atol=1e-3)


def test_info_nce_reports_each_anchor():
    anchors, positives, negatives = unit_rows(B, D), unit_rows(B, D, seed=1), unit_rows(K, D, seed=2)
    allowed = some_allowed()
    contrast = info_nce(*jnp32(anchors, positives, negatives), jnp.asarray(allowed), temperature=0.1)
    assert contrast.loss.shape == contrast.positive.shape == (B,)
    assert contrast.loss.dtype == contrast.positive.dtype == contrast.selection.similarities.dtype == jnp.float32
    np.testing.assert_allclose(contrast.loss, expected_losses(anchors, positives, negatives, allowed, 0.1), rtol=1e-5)
    np.testing.assert_allclose(contrast.positive, (anchors * positives).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(contrast.selection.chosen, allowed)
    np.testing.assert_allclose(
        np.asarray(contrast.selection.similarities)[allowed], (anchors @ negatives.T)[allowed], atol=1e-6
    )
    everything = info_nce(*jnp32(anchors, positives, negatives), temperature=0.1)
    all_allowed = np.ones((B, K), bool)
    np.testing.assert_allclose(
        everything.loss, expected_losses(anchors, positives, negatives, all_allowed, 0.1), rtol=1e-5
    )


def test_top_k_of_the_whole_queue_is_every_negative():
    arrays = jnp32(unit_rows(B, D), unit_rows(B, D, seed=1), unit_rows(K, D, seed=2))
    allowed = jnp.asarray(some_allowed())

    def loss(arrays, selector):
        return info_nce(*arrays, allowed, temperature=0.1, select=SELECTORS[selector].select, k=K).loss.mean()

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    chosen, everything = value_and_grad(arrays, 'top_k'), value_and_grad(arrays, 'all')
    chex.assert_trees_all_close(chosen, everything, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('selector', ['all', 'top_k'])
def test_without_negatives_loss_and_gradient_are_zero(selector):
    """The queue is empty, as in the first step, or one row has no negatives."""
    queue = empty_queue(K, D)
    arrays = jnp32(unit_rows(B, D), unit_rows(B, D, seed=1))

    @jax.jit
    def losses(anchors, positives, negatives, allowed):
        return info_nce(
            anchors, positives, negatives, allowed, temperature=0.1, select=SELECTORS[selector].select, k=4
        ).loss

    gradients = jax.jit(jax.grad(lambda *arguments: losses(*arguments).sum(), (0, 1, 2)))

    nothing = jnp.broadcast_to(valid(queue)[None], (B, K))
    assert not losses(*arrays, queue.keys, nothing).any()
    for gradient in gradients(*arrays, queue.keys, nothing):
        assert not gradient.any()

    allowed = some_allowed()
    negatives = jnp.asarray(unit_rows(K, D, seed=2), jnp.float32)
    value = np.asarray(losses(*arrays, negatives, jnp.asarray(allowed)))
    assert value[1] == 0
    assert (value[[0, 2, 3]] > 0).all()
    for gradient in gradients(*arrays, negatives, jnp.asarray(allowed))[:2]:
        assert not np.asarray(gradient)[1].any()
        assert np.asarray(gradient)[[0, 2, 3]].all(axis=1).all()


@pytest.mark.parametrize('temperature', [0.01, 1e-4])
def test_large_logits_stay_finite(temperature):
    """The cosines are -1 and 1, the extremes for an anchor."""
    anchor = unit_rows(1, D)
    negatives = np.concatenate([anchor, anchor, -anchor])

    def loss(anchors, positives, negatives):
        return info_nce(anchors, positives, negatives, temperature=temperature).loss.sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    worst, worst_gradients = value_and_grad(*jnp32(anchor, -anchor, negatives))
    np.testing.assert_allclose(worst, 2 / temperature + np.log(2), rtol=1e-5)
    best, best_gradients = value_and_grad(*jnp32(anchor, anchor, -anchor))
    assert 0 <= best < 1e-6
    for gradient in (*worst_gradients, *best_gradients):
        assert jnp.isfinite(gradient).all()
    # d loss / d anchor = (mean of the two tied negatives - positive) / τ = 2 anchor / τ
    np.testing.assert_allclose(worst_gradients[0], 2 * anchor / temperature, rtol=1e-4)


def test_cross_entropy_ignores_minus_infinity():
    positive = np.array([0.3, -0.9, 0.5, 0.1])
    negatives = unit_rows(B, 5, seed=3)
    negatives[0, :] = -np.inf
    negatives[1, 1:] = -np.inf
    negatives[2, 0] = -np.inf

    def loss(positive, negatives):
        return cross_entropy(positive, negatives, 0.1)

    with np.errstate(divide='ignore'):
        logits = np.concatenate([positive[:, None], negatives], axis=1) / 0.1
        expected = np.logaddexp.reduce(logits, axis=1) - logits[:, 0]
    np.testing.assert_allclose(loss(*jnp32(positive, negatives)), expected, rtol=1e-5, atol=1e-7)
    gradients = jax.grad(lambda *a: loss(*a).sum(), (0, 1))(*jnp32(positive, negatives))
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None]) / 0.1
    np.testing.assert_allclose(gradients[1], shares[:, 1:], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradients[0], -shares[:, 1:].sum(1), rtol=1e-4, atol=1e-7)
    assert not np.asarray(gradients[1])[np.isinf(negatives)].any()

    empty_columns = cross_entropy(jnp.zeros(B), jnp.zeros((B, 0)), 0.1)
    np.testing.assert_array_equal(empty_columns, np.zeros(B))


def test_equal_similarities_give_the_chance_level():
    anchors = np.eye(D)[[0, 0, 0, 0]]
    others = np.eye(D)[[1] * K]
    allowed = some_allowed()
    contrast = info_nce(*jnp32(anchors, others[:B], others), jnp.asarray(allowed), temperature=0.1)
    np.testing.assert_allclose(contrast.loss, np.log1p(allowed.sum(1)), rtol=1e-6)
    np.testing.assert_allclose(
        chance_level(contrast.selection.chosen.sum(1)), np.log1p(allowed.sum(1)).mean(), rtol=1e-6
    )
    hardest = info_nce(
        *jnp32(anchors, others[:B], others), jnp.asarray(allowed), temperature=1.0, select=select_top_k, k=2
    )
    np.testing.assert_allclose(
        chance_level(hardest.selection.chosen.sum(1)), np.log1p(np.minimum(allowed.sum(1), 2)).mean(), rtol=1e-6
    )


def clip_columns(queries, keys, temperature):
    """The column half of a CLIP-style loss: every key identifies its query in the batch."""
    logits = queries @ keys.T / temperature
    return (np.logaddexp.reduce(logits, axis=0) - np.diag(logits)).mean()


def key_contrast(queries, temperature=0.2):
    """The key term 'batch': the other queries of the view order are the negatives of a key."""
    others = ~jnp.eye(B, dtype=bool)
    return lambda key, query: info_nce(key, query, query, others, temperature=temperature)


def test_key_term_of_the_batch_is_a_column_softmax():
    """The gradient reaches every query, as positive and as negative."""
    keys = unit_rows(2, B, D, seed=5)
    negatives = jnp.asarray(unit_rows(K, D, seed=2), jnp.float32)
    contrast = partial(info_nce, negatives=negatives, temperature=0.2)

    def loss(queries):
        return dual_view_loss(queries, jnp.asarray(keys, jnp.float32), contrast, key_contrast(queries), 1.0)[0]

    def expected(queries):
        return np.mean([clip_columns(query, key, 0.2) for query, key in zip(queries, keys, strict=True)])

    assert_gradients(loss, expected, [unit_rows(2, B, D, seed=4)])


@pytest.mark.parametrize('orders', [1, 2])
@pytest.mark.parametrize('key_weight', [0.0, 0.3])
def test_dual_view_loss_is_the_mean_over_view_orders(orders, key_weight):
    keys, negatives = unit_rows(orders, B, D, seed=5), unit_rows(K, D, seed=2)
    allowed = some_allowed()
    contrast = partial(
        info_nce, negatives=jnp.asarray(negatives, jnp.float32), allowed=jnp.asarray(allowed), temperature=0.2
    )

    def loss(queries):
        arguments = (queries, jnp.asarray(keys, jnp.float32), contrast, key_contrast(queries), key_weight)
        return dual_view_loss(*arguments)[0]

    def expected(queries):
        total = 0
        for query, key in zip(queries, keys, strict=True):
            total += (1 - key_weight) * expected_losses(query, key, negatives, allowed, 0.2).mean()
            total += key_weight * clip_columns(query, key, 0.2)
        return total / orders

    queries = unit_rows(orders, B, D, seed=4)
    assert_gradients(loss, expected, [queries])
    _, contrasts = dual_view_loss(*jnp32(queries, keys), contrast)
    assert len(contrasts) == orders
    for query, key, found in zip(queries, keys, contrasts, strict=True):
        np.testing.assert_allclose(found.loss, expected_losses(query, key, negatives, allowed, 0.2), rtol=1e-5)


def test_key_term_of_the_queue_only_attracts():
    """Its gradient by a query is a multiple of the key. At weight 0 the key term is not computed."""
    queries, keys, negatives = jnp32(unit_rows(1, B, D, seed=4), unit_rows(1, B, D, seed=5), unit_rows(K, D, seed=2))
    contrast = partial(info_nce, negatives=negatives, temperature=0.2)
    gradient = jax.grad(lambda q: dual_view_loss(q, keys, contrast, contrast, 1.0)[0])(queries)
    towards = (gradient * keys).sum(-1, keepdims=True)
    assert (towards < 0).all()
    np.testing.assert_allclose(gradient, towards * keys, atol=1e-6)

    def unexpected(key, query):
        raise AssertionError('the key term was computed')

    dual_view_loss(queries, keys, contrast, unexpected, 0.0)


def test_dual_view_loss_requires_a_key_for_every_query():
    queries, keys = jnp32(unit_rows(2, B, D), unit_rows(1, B, D))
    with pytest.raises(ValueError, match='zip'):
        dual_view_loss(queries, keys, partial(info_nce, negatives=keys[0], temperature=0.2))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_normalize(dtype):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(2, B, D)) * [[[1e-3]], [[1e3]]], dtype).at[0, 0].set(0)
    unit = normalize(rows)
    assert unit.dtype == jnp.float32
    lengths = np.linalg.norm(np.float64(unit), axis=-1)
    assert lengths[0, 0] == 0
    np.testing.assert_allclose(lengths.ravel()[1:], 1, rtol=1e-6)
    exact = np.float64(rows.astype(jnp.float32))[1]
    np.testing.assert_allclose(unit[1], exact / np.linalg.norm(exact, axis=-1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_gradient_of_normalize():
    weights = np.random.default_rng(1).normal(size=(B, D))
    assert_gradients(
        lambda x: (normalize(x) * jnp.float32(weights)).sum(),
        lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True) * weights).sum(),
        [np.random.default_rng(0).normal(size=(B, D))],
    )


def test_the_gradient_of_a_zero_row_is_zero():
    """Such as that of a sentence without tokens. It was 1e12 times larger than those of other rows."""
    gradient = jax.grad(lambda x: (normalize(x) @ jnp.array([1.0, -3.0])).sum())
    rows = jnp.array([[0.0, 0.0], [1.0, 2.0], [1e-13, 0.0]])
    np.testing.assert_array_equal(gradient(rows), [[0, 0], gradient(rows[1:2])[0], [0, 0]])
    assert jnp.isnan(normalize(jnp.array([jnp.nan, 1.0]))).all()  # a diverged row does not count as zero


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_every_product_of_the_lowered_loss_is_at_full_precision(dtype):
    """The encoder's dtype does not matter: an accelerator must not round the similarities to bfloat16."""

    def loss(features, keys, negatives):
        contrast = partial(info_nce, negatives=negatives, temperature=0.1, select=select_top_k, k=4)
        queries = normalize(features)
        return dual_view_loss(queries, keys, contrast, key_contrast(queries), 0.5)[0]

    shapes = jax.ShapeDtypeStruct((2, B, D), dtype), jax.ShapeDtypeStruct((2, B, D), jnp.float32)
    program = jax.jit(jax.value_and_grad(loss)).lower(*shapes, jax.ShapeDtypeStruct((K, D), jnp.float32)).as_text()
    products = re.findall(r'stablehlo\.dot_general.*', program)
    assert len(products) >= 4, 'two view orders, forwards and backwards'
    for product in products:
        assert 'precision = [HIGHEST, HIGHEST]' in product
        assert 'bf16' not in product


def test_cosine_is_a_float32_product():
    a, b = unit_rows(B, D), unit_rows(K, D, seed=1)
    similarities = cosine(*jnp32(a, b))
    assert similarities.dtype == jnp.float32
    np.testing.assert_allclose(similarities, a @ b.T, atol=1e-6)


def test_a_custom_selector():
    """Any function of similarities, k and random keys is a selector: here, one that selects the easiest negative."""

    def easiest(similarities, k, rngs=None):
        return Selection(similarities.min(axis=1, keepdims=True), None)

    anchors, positives, negatives = unit_rows(B, D), unit_rows(B, D, seed=1), unit_rows(K, D, seed=2)
    contrast = info_nce(*jnp32(anchors, positives, negatives), temperature=0.5, select=easiest)
    margins = ((anchors @ negatives.T).min(1) - (anchors * positives).sum(1)) / 0.5
    np.testing.assert_allclose(contrast.loss, np.log1p(np.exp(margins)), rtol=1e-5)


def test_a_key_weight_needs_a_term():
    views = normalize(jax.random.normal(jax.random.key(0), (1, 4, 8)))
    compare = partial(info_nce, negatives=views[0], temperature=0.1, select=select_all, k=4)
    with pytest.raises(ValueError, match='needs a key_contrast'):
        dual_view_loss(views, views, compare, key_weight=0.5)
