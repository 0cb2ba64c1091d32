"""Compares the allowed and the selected negatives with sorting and loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import default
from dualcl_jax.losses import Selection, select_all, select_top_k
from dualcl_jax.method.negatives.queue import UNKNOWN, empty_queue, enqueue, valid
from dualcl_jax.method.negatives.selectors import (
    SELECTORS,
    SelectorSpec,
    allowed_slots,
    resolve_k,
    select_approx_max_k,
    select_random,
    select_ring,
    select_threshold,
)
from dualcl_jax.method.validation import validate
from dualcl_jax.system.config import override
from dualcl_jax.system.devices import AXIS
from dualcl_jax.system.errors import UserError
from tests.support.methods import image_method


def selected_slots(selection):
    """The slots with a negative, as a set for each anchor."""
    columns = range(selection.similarities.shape[1])
    slots = [list(columns)] * len(selection.similarities) if selection.slots is None else selection.slots
    chosen = np.asarray(selection.chosen)
    return [{int(s) for s in row[mask]} for row, mask in zip(np.asarray(slots), chosen, strict=True)]


@st.composite
def masked_similarities(draw):
    """[B, K] float32 on a coarse grid, so that ties are common, with -inf where a slot is not allowed."""
    shape = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 5, 16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = draw(st.sampled_from([2, 8, 10_000]))
    similarities = (rng.integers(-grid, grid + 1, size=shape) / grid).astype(np.float32)
    similarities[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))] = -np.inf
    return similarities, draw(st.sampled_from([1, 3, 5, 20]))


@settings(max_examples=80)
@given(masked_similarities())
def test_top_k_takes_the_most_similar_and_the_lower_slot_of_equals(case):
    similarities, k = case
    selection = jax.tree.map(np.asarray, select_top_k(jnp.asarray(similarities), k))
    for row, chosen in zip(similarities, selected_slots(selection), strict=True):
        order = sorted(np.flatnonzero(row > -np.inf), key=lambda slot: (-row[slot], slot))
        assert chosen == {int(slot) for slot in order[:k]}
    table = np.arange(similarities.shape[1]) * 7 + 3
    for i, row in enumerate(np.asarray(selection.take(table))):
        for entry, similarity in zip(row, selection.similarities[i], strict=True):
            assert similarity == -np.inf or similarity == similarities[i, (entry - 3) // 7]


def test_more_than_are_allowed_are_never_selected():
    similarities = jnp.asarray([[0.5, -jnp.inf, 0.1], [-jnp.inf] * 3, [0.3, 0.2, 0.1]])
    selection = select_top_k(similarities, 100)
    assert selected_slots(selection) == [{0, 2}, set(), {0, 1, 2}]
    np.testing.assert_array_equal(selection.chosen.sum(1), [2, 0, 3])


def test_all_takes_every_allowed_slot():
    similarities = jnp.asarray([[0.5, -jnp.inf, 0.1], [-jnp.inf] * 3])
    selection = select_all(similarities, 1)
    assert selected_slots(selection) == [{0, 2}, set()]
    np.testing.assert_array_equal(selection.similarities, similarities)


def test_take_follows_the_slots():
    table = jnp.asarray([10, 11, 12, 13])
    by_slot = Selection(jnp.zeros((2, 2)), jnp.asarray([[3, 0], [1, 1]]))
    np.testing.assert_array_equal(by_slot.take(table), [[13, 10], [11, 11]])
    in_place = Selection(jnp.zeros((2, 4)), None)
    np.testing.assert_array_equal(in_place.take(table), [[10, 11, 12, 13]] * 2)


@pytest.mark.parametrize('selector', SELECTORS)
def test_the_gradient_of_a_selector_is_that_of_picking_values(selector):
    similarities = np.array([[0.5, -np.inf, 0.1, 0.4], [0.2, 0.9, -0.3, -0.2]], np.float32)
    rngs = jax.random.split(jax.random.key(0), 2)

    def total(x):
        selection = SELECTORS[selector].select(x, 2, rngs)
        return jnp.where(selection.chosen, selection.similarities, 0.0).sum()

    gradient = jax.jit(jax.grad(total))(jnp.asarray(similarities))
    chosen = selected_slots(SELECTORS[selector].select(jnp.asarray(similarities), 2, rngs))
    np.testing.assert_array_equal(gradient, [[float(slot in row) for slot in range(4)] for row in chosen])


def test_threshold_selects_what_top_k_does():
    """Of equal similarities, both take those of the lower slots."""
    similarities = (np.random.default_rng(0).integers(-3, 4, size=(4, 50)) / 4).astype(np.float32)
    similarities[1, ::2] = -np.inf
    for k in (1, 7, 30, 100):
        assert selected_slots(select_threshold(jnp.asarray(similarities), k)) == selected_slots(
            select_top_k(jnp.asarray(similarities), k)
        )


def test_approx_max_k_finds_most_of_top_k():
    similarities = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4096)), jnp.float32)
    exact, found = (selected_slots(select(similarities, 256)) for select in (select_top_k, select_approx_max_k))
    assert np.mean([len(a & b) / 256 for a, b in zip(exact, found, strict=True)]) >= 0.9
    assert 'recall_target=0.95' in str(jax.make_jaxpr(lambda x: select_approx_max_k(x, 256))(similarities))


@pytest.mark.parametrize('skip', [0, 2, 5])
def test_ring_skips_the_hardest(skip):
    similarities = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    similarities[2, 3:] = -np.inf
    order = np.argsort(-similarities, axis=1, kind='stable')
    for row, chosen in zip(range(3), selected_slots(select_ring(jnp.asarray(similarities), 4, skip=skip)), strict=True):
        allowed = [slot for slot in order[row] if similarities[row, slot] > -np.inf]
        assert chosen == set(allowed[skip : skip + 4])


def test_random_draws_k_allowed_slots_evenly():
    similarities = jnp.asarray([[0.9, -jnp.inf, 0.1, 0.2, 0.3, -0.5]], jnp.float32)
    draw = jax.jit(lambda rng: select_random(similarities, 2, rng[None]).chosen[0])
    chosen = np.stack([draw(rng) for rng in jax.random.split(jax.random.key(0), 600)])
    np.testing.assert_array_equal(chosen.sum(1), 2)
    np.testing.assert_allclose(chosen.mean(0), [0.4, 0.0, 0.4, 0.4, 0.4, 0.4], atol=0.08)  # four standard errors
    np.testing.assert_array_equal(draw(jax.random.key(1)), draw(jax.random.key(1)))


def test_a_selector_is_one_entry(monkeypatch):
    """As CONTRIBUTING.md says: a function with a parameter and its entry are all that a config needs."""

    def weakest(similarities, k, rngs=None, *, skip, axis_name=None):
        return select_ring(
            jnp.where(similarities > -jnp.inf, -similarities, -jnp.inf), k, rngs, skip=skip, axis_name=axis_name
        )

    fields = (
        'negatives.selector=weakest',
        'negatives.skip=1',
        'negatives.k=2',
        'negatives.schedule=linear',
        'queue.sharded=True',
    )
    config = default.get_config()
    override(config, fields)
    with pytest.raises(UserError, match=r"negatives.selector='weakest': choose one of auto, all, .* random, or MODULE"):
        validate(config)
    monkeypatch.setitem(SELECTORS, 'weakest', SelectorSpec(weakest, sharded=weakest, counted=True, fields=('skip',)))
    validate(config)
    method = image_method(config, total_steps=2, steps_per_epoch=1, num_devices=1)
    assert method.select.keywords == {'skip': 1, 'axis_name': AXIS}
    config.queue.sharded = False
    select = image_method(config, total_steps=2, steps_per_epoch=1, num_devices=1).select
    assert selected_slots(select(jnp.asarray([[0.4, 0.1, -jnp.inf, 0.3, 0.2]]), 2)) == [{3, 4}]


def test_random_needs_keys():
    with pytest.raises(ValueError, match='rngs'):
        select_random(jnp.zeros((1, 3)), 2)


@pytest.mark.parametrize('mask_same_image', [False, True])
def test_allowed_slots(mask_same_image):
    rng = np.random.default_rng(0)
    is_valid = rng.random(12) < 0.7
    slot_ids, anchor_ids = (rng.integers(4, size=n).astype(np.int32) for n in (12, 5))
    slot_ids[::5] = UNKNOWN
    allowed = allowed_slots(*map(jnp.asarray, (is_valid, slot_ids, anchor_ids)), mask_same_image=mask_same_image)
    assert allowed.shape == (5, 12)
    assert allowed.dtype == bool
    for i, anchor in enumerate(anchor_ids):
        for j, slot in enumerate(slot_ids):
            assert allowed[i, j] == (is_valid[j] and not (mask_same_image and anchor == slot))


def test_slots_not_filled_yet_are_never_allowed():
    queue = empty_queue(6, 3)
    ids = jnp.asarray([4, 5], jnp.int32)
    assert not allowed_slots(valid(queue), queue.ids, ids, mask_same_image=True).any()
    queue = enqueue(queue, jnp.ones((2, 3)), ids, ids, jnp.int32(0))
    np.testing.assert_array_equal(
        allowed_slots(valid(queue), queue.ids, ids, mask_same_image=False), [[1, 1, 0, 0, 0, 0]] * 2
    )
    np.testing.assert_array_equal(
        allowed_slots(valid(queue), queue.ids, ids, mask_same_image=True), [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    )


@pytest.mark.parametrize(
    ('k', 'fraction', 'size', 'expected'),
    [(5, 0.25, 4096, 5), (0, 0.25, 4096, 1024), (0, 1.0, 7, 7), (0, 0.001, 7, 1), (9, 0.25, 7, 7), (0, 0.5, 1, 1)],
)
def test_resolve_k(k, fraction, size, expected):
    assert resolve_k(k, fraction, size) == expected
