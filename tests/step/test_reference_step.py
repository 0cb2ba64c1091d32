"""Compares the training step, mapped over devices, with the float64 MoCo of `tests/reference/moco.py` at every step."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import cifar10_moco
from dualcl_jax.data.loader import Batch
from dualcl_jax.method import randomness
from dualcl_jax.method.state import create_train_state
from dualcl_jax.step import train_step
from dualcl_jax.system.devices import AXIS, MAPPERS
from tests.reference import moco as reference
from tests.support.methods import image_method
from tests.support.steps import (
    BATCH,
    DIM,
    SIDE,
    TOTAL_STEPS,
    assert_follows_reference,
    full_recipe,
    make_batches,
    run,
    tiny,
)


@pytest.mark.parametrize(('mapper', 'devices', 'queue_size'), [('pmap', 1, 20), ('pmap', 4, 20), ('shard_map', 4, 5)])
def test_moco_baseline(given_views, mapper, devices, queue_size):
    """The queue wraps around within a batch, or is smaller than a batch."""
    config = tiny(cifar10_moco.get_config(), queue_size)
    assert (config.loss.symmetric, config.loss.key_weight, config.negatives.selector) == (False, 0.0, 'all')
    assert (config.negatives.mask_same_image, config.queue.init) == (False, 'noise')
    assert (config.optimizer.name, config.optimizer.decay_norm_and_bias) == ('sgd', True)
    assert (config.ema.momentum, config.ema.schedule) == (0.99, 'constant')
    batches = make_batches()
    states, metrics = run(config, batches, mapper=mapper, devices=devices)
    assert_follows_reference(config, states, metrics, batches)


@pytest.mark.parametrize(
    ('key_weight', 'key_term', 'devices', 'queue_size'),
    [(0.0, 'batch', 4, 40), (0.5, 'batch', 1, 40), (0.5, 'batch', 4, 40), (0.5, 'queue', 4, 11)],
)
def test_dual_view_with_hard_negatives(given_views, key_weight, key_term, devices, queue_size):
    """Also with a queue smaller than the 16 keys of a step: it keeps the newest, in whole examples."""
    config = full_recipe(queue_size, loss__key_weight=key_weight, loss__key_term=key_term)
    batches = make_batches()
    states, metrics = run(config, batches, devices=devices, steps_per_epoch=2)
    if key_term == 'queue' or not key_weight:
        assert metrics[0]['train/loss'] == 0.0
        assert metrics[0]['train/gradient_norm'] == 0.0
    assert_follows_reference(config, states, metrics, batches, steps_per_epoch=2)


def test_rows_may_lie_on_any_device_and_keys_be_shuffled(given_views):
    """Neither changes the results of an encoder without interaction between examples."""
    config = full_recipe(40, loss__key_weight=0.5, loss__shuffle_keys=True)
    batches = make_batches()
    order = np.random.default_rng(2).permutation(BATCH)
    moved = [Batch(*(rows[order] for rows in batch)) for batch in batches]
    states, metrics = run(config, moved, devices=4, steps_per_epoch=2)
    assert_follows_reference(config, states, metrics, batches, steps_per_epoch=2)


def test_a_bfloat16_encoder_leaves_the_loss_at_full_precision():
    """Every float32 product of the lowered step, including views and gradients, requests the highest precision."""
    config = full_recipe(40, loss__key_weight=0.5, model__dtype='bfloat16')
    mesh = Mesh(np.asarray(jax.devices()), (AXIS,))
    method = image_method(config, total_steps=TOTAL_STEPS, steps_per_epoch=2, num_devices=4)
    state = jax.eval_shape(partial(create_train_state, method))
    batch = Batch(
        jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.uint8), *[jax.ShapeDtypeStruct((BATCH,), jnp.int32)] * 3
    )
    step = MAPPERS['shard_map'](mesh).map(partial(train_step, method))
    products = re.findall(r'stablehlo\.dot_general.*', step.lower(state, batch).as_text())
    in_bfloat16 = [product for product in products if re.search(r': \(tensor<[^>]*bf16>', product)]
    in_float32 = [product for product in products if product not in in_bfloat16]
    assert in_bfloat16, 'the encoder computes in bfloat16'
    similarities = [product for product in in_float32 if f'x{config.queue.size}xf32>' in product]
    assert len(similarities) >= 2
    for product in in_float32:
        assert 'precision = [HIGHEST, HIGHEST]' in product, product


@pytest.mark.parametrize('recipe', [{}, {'key_weight': 0.5}, {'key_weight': 0.5, 'key_term': 'queue'}])
def test_the_references_gradient_is_that_of_its_loss(recipe):
    """Checks the reference's own gradient by central differences."""
    rng = np.random.default_rng(0)
    theta = {
        'conv1': rng.normal(size=(3, 3, 3, 2)),
        'conv2': rng.normal(size=(3, 3, 2, 4)),
        'weight': rng.normal(size=(4, 3)),
        'bias': rng.normal(size=3),
    }
    settings = reference.Settings(0.2, 0.1, 8, symmetric=True, k=3, mask_same_image=True, **recipe)
    moco = reference.Moco(settings, theta, rng.normal(size=(7, 3)), 6)
    moco.ids = [0, 1, 2, 3, 4, 5, -1]
    views = list(rng.normal(size=(2, 4, 5, 5, 3)))
    keys = [reference.encode(theta, view)[0] + 0.1 for view in views]
    ids = [0, 1, 2, 0]
    _, gradient = moco.loss_and_gradient(theta, views, keys, ids)

    def loss_at(name, index, change):
        moved = {key: value.copy() for key, value in theta.items()}
        moved[name][index] += change
        return moco.loss_and_gradient(moved, views, keys, ids)[0]

    for name, value in theta.items():
        for index in list(np.ndindex(value.shape))[:: max(1, value.size // 8)]:
            slope = (loss_at(name, index, 1e-5) - loss_at(name, index, -1e-5)) / 2e-5
            np.testing.assert_allclose(gradient[name][index], slope, rtol=1e-5, atol=1e-8)


def test_noise_of_the_queue_is_a_pure_function_of_the_seed():
    config = tiny(cifar10_moco.get_config(), 20)
    method = image_method(config, total_steps=TOTAL_STEPS, steps_per_epoch=1, num_devices=1)
    first, second = (create_train_state(method) for _ in range(2))
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_equal(first.params, first.momentum_params)
    assert int(first.queue.filled) == 20
    noise = jax.random.normal(randomness.key(config.seed, randomness.QUEUE), (20, DIM))
    np.testing.assert_allclose(
        first.queue.keys, noise / np.linalg.norm(noise, axis=1, keepdims=True), rtol=1e-5, atol=1e-6
    )
