"""Fine-tuning learns, is deterministic on any devices, changes lower layers less, and its steps are those of SGD."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import default
from dualcl_jax.data.images.source import image_source
from dualcl_jax.data.loader import make_batch
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.measures.finetune import Recipe, balanced_rows, predict_classes, train_classifier
from dualcl_jax.method import randomness
from dualcl_jax.method.state import create_train_state
from dualcl_jax.method.views.images import ViewSpec
from dualcl_jax.models.encoder import MODELS
from dualcl_jax.models.layers import Conv, global_mean
from dualcl_jax.system.devices import AXIS, device_mesh
from tests.support.methods import image_method

RECIPE = Recipe(6, 16, 'sgd', 0.2, 1e-4, 0.9, 0.1, (0.5, 1.0))


class Small(nn.Module):
    """Two layers with a batch norm between them, with the names of a ResNet."""

    norm: Callable[..., nn.Module]
    stem: str
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images, *, train):
        x = Conv(self.width, 3, 2, name='conv1')(images)
        x = jnp.tanh(self.norm(name='bn1')(x, train=train))
        return global_mean(jnp.tanh(Conv(self.width, 3, name='layer1_0')(x)))


@pytest.fixture(scope='module')
def method():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, 'small', Small)
        config = default.get_config()
        config.model.name, config.model.width, config.model.dim = 'small', 8, 8
        config.data.image_size, config.data.mean, config.data.std = 8, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
        yield image_method(config, total_steps=1, steps_per_epoch=1, num_devices=1)


@pytest.fixture(scope='module')
def variables(method):
    return jax.jit(lambda: create_train_state(method))().variables


def source(count=96):
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % 3
    means = rng.uniform(40, 215, (3, 1, 1, 3))
    pixels = means[labels] + rng.normal(0, 25, (count, 8, 8, 3))
    return image_source('toy', pixels.clip(0, 255).astype(np.uint8), labels, ('a', 'b', 'c'))


def tuned(method, variables, mesh=None, **changes):
    calls = []
    recipe = dataclasses.replace(RECIPE, **changes)
    found = train_classifier(
        method, mesh or device_mesh(), variables, source(), 3, recipe, seed=0, advance=lambda: calls.append(0)
    )
    assert len(calls) == recipe.steps(96)
    return found


def moved(found, variables, part):
    """How far the parameters of a part moved."""
    leaves = (jax.tree.leaves(tree['params']['backbone'][part]) for tree in (found.variables, variables))
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*leaves, strict=True))


def test_it_learns_and_does_not_change_the_encoder(method, variables):
    before = jax.tree.map(np.array, variables)
    found = tuned(method, variables)
    chex.assert_trees_all_equal(before, jax.tree.map(np.array, variables))
    images = source()
    predicted = predict_classes(Embedder(method, device_mesh()), found, images, np.arange(96), lambda: None)
    assert predicted.dtype == np.int32
    assert np.mean(predicted == images.labels) > 0.9
    again = tuned(method, variables)
    chex.assert_trees_all_equal(found, again)


def test_three_steps_are_those_of_sgd(method, variables):
    """With the warm-up, the decay of kernels, and the crops and flips that each step draws anew."""
    found = tuned(method, variables, batch_size=32, epochs=1, warmup=0.7, weight_decay=0.1, layer_decay=1.0)
    spec = ViewSpec(crop_scale=(0.5, 1.0), flip=0.5, jitter_probability=0.0, grayscale=0.0, blur_probability=0.0)
    views = dataclasses.replace(method.views, specs=(spec,))
    encoder = method.encoder.clone(groups=1, span=1, axis_name=None)

    @jax.jit
    def differentiate(params, stats, keys, batch):
        def loss(params):
            given = {'params': variables['params'] | {'backbone': params['backbone']}, 'batch_stats': stats}
            view = views.make(keys, batch.examples)[0]
            encoded, updated = encoder.apply(given, view, train=True, mutable=['batch_stats'])
            scores = jax.nn.log_softmax(encoded.backbone @ params['kernel'] + params['bias'][None])
            return -jnp.take_along_axis(scores, batch.labels[:, None], axis=1).mean(), updated['batch_stats']

        return jax.grad(loss, has_aux=True)(params)

    start = {'backbone': variables['params']['backbone'], 'kernel': jnp.zeros((8, 3)), 'bias': jnp.zeros(3)}
    params, stats, velocity = start, variables['batch_stats'], jax.tree.map(jnp.zeros_like, start)
    for step, rate in enumerate((0.0, 0.1, 0.2)):  # two steps of warm-up
        batch = make_batch(source(), np.arange(32), seed=0, step=step, batch_size=32)
        keys = randomness.example_keys(0, randomness.FINETUNE, step, batch.positions)
        gradient, stats = differentiate(params, stats, keys, batch)
        decay = jax.tree.map(lambda param: 0.1 * (param.ndim > 1) * param, params)
        velocity = jax.tree.map(lambda before, *added: 0.9 * before + sum(added), velocity, gradient, decay)
        params = jax.tree.map(lambda param, change, rate=rate: param - rate * change, params, velocity)
    ours = {'backbone': found.variables['params']['backbone'], 'kernel': found.kernel, 'bias': found.bias}
    for one, other in ((ours, params), (found.variables['batch_stats'], stats)):
        chex.assert_trees_all_close(*(jax.tree.map(np.asarray, tree) for tree in (one, other)), rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_of_the_whole_batch(method, variables):
    """One device and four agree; batches of 18 images cannot be divided by four, so each device has all of them."""
    one = Mesh(np.asarray(jax.devices()[:1]), (AXIS,))
    for batch_size in (16, 18):
        many = tuned(method, variables, batch_size=batch_size, epochs=1)
        few = tuned(method, variables, one, batch_size=batch_size, epochs=1)
        chex.assert_trees_all_close(*(jax.tree.map(np.array, t) for t in (many, few)), atol=1e-4)


def test_lower_layers_move_less(method, variables):
    slow, plain = (tuned(method, variables, layer_decay=decay, epochs=1) for decay in (1e-2, 1.0))
    assert float(jnp.abs(slow.kernel).max()) > 1e-2
    for part, rate in (('layer1_0', 1e-2), ('conv1', 1e-4)):
        assert rate / 3 < moved(slow, variables, part) / moved(plain, variables, part) < 3 * rate
    assert moved(plain, variables, 'conv1') > 1e-3


def test_a_frozen_patch_projection_is_trained():
    """`model.freeze_patches` is for pre-training: every parameter of a ViT's backbone changes in fine-tuning."""
    config = default.get_config()
    config.model.name, config.model.dim, config.model.freeze_patches = 'vit_tiny', 8, True
    config.data.image_size, config.data.mean, config.data.std = 8, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
    method = image_method(config, total_steps=1, steps_per_epoch=1, num_devices=1)
    variables = jax.jit(lambda: create_train_state(method))().variables
    found = tuned(method, variables, epochs=1, layer_decay=1.0)
    for part in variables['params']['backbone']:
        assert moved(found, variables, part) > 1e-4, part
    leaves = (jax.tree.leaves(tree['params']['backbone']['patch_embed']) for tree in (found.variables, variables))
    assert all((a != b).any() for a, b in zip(*leaves, strict=True))


def test_balanced_rows():
    labels = np.repeat(np.arange(4), [50, 50, 50, 3])
    rows = balanced_rows(labels, 0.2, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [8, 8, 8, 3])
    np.testing.assert_array_equal(rows, np.unique(rows))
    np.testing.assert_array_equal(rows, balanced_rows(labels, 0.2, seed=0))
    assert (rows != balanced_rows(labels, 0.2, seed=1)).any()
    np.testing.assert_array_equal(np.bincount(labels[balanced_rows(labels, 0.001, seed=0)]), [1, 1, 1, 1])
