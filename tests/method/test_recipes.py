"""The recipes: curves and parameter counts by the papers' formulas, a few steps of each, and 30 steps that learn."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from dualcl_jax.data.loader import Batch
from dualcl_jax.method.state import create_train_state
from dualcl_jax.method.validation import validate, validate_devices, validate_schedule
from dualcl_jax.step import train_step
from dualcl_jax.system.config import load_config
from dualcl_jax.system.devices import AXIS, MAPPERS, replicate, to_host
from dualcl_jax.system.errors import UserError
from tests.support.methods import image_method

SMALL = ('moco_v1', 'moco_v2', 'moco_v3', 'dualcl_v1', 'dualcl_v2', 'dualcl_v3')
VIT = ('moco_v3_vit', 'dualcl_v3_vit')
IMAGENET = 1_281_167


def recipe(dataset, name):
    config = load_config(f'configs/{dataset}.py:{name}')
    if not config.data.mean:
        config.data.mean, config.data.std = (0.5,) * 3, (0.25,) * 3
    return config


@pytest.mark.parametrize('dataset', ['cifar10', 'cifar100', 'stl10', 'imagenette', 'imagenet'])
@pytest.mark.parametrize('name', SMALL + VIT)
def test_every_recipe_is_valid(dataset, name):
    if name in VIT and dataset != 'imagenet':
        with pytest.raises(UserError, match=r'use it with imagenet\.py'):
            recipe(dataset, name)
        return
    config = recipe(dataset, name)
    validate(config)
    validate_devices(config, 8)
    validate_schedule(config, total_steps=50 * config.train.epochs, steps_per_epoch=50)
    assert config.loss.symmetric == (name.startswith('dualcl') or 'v3' in name)
    assert (config.negatives.selector == 'auto') == name.startswith('dualcl')


def test_an_unknown_recipe():
    with pytest.raises(UserError, match=r"recipe 'moco_v4': choose one of moco_v1, moco_v2"):
        load_config('configs/cifar10.py:moco_v4')


def cosine_to_zero(progress):
    return (1 + math.cos(math.pi * progress)) / 2


def formula(name, epoch, epochs):
    """The papers' learning rates: steps of v1 (§4.1), cosine of v2, warm-up and cosine × batch / 256 of v3 (§A)."""
    if name == 'moco_v1':
        return 0.03 * (1 if epoch < 120 else 0.1 if epoch < 160 else 0.01)
    if name == 'moco_v2':
        return 0.03 * cosine_to_zero(epoch / epochs)
    base, warmup = (0.6, 10) if name == 'moco_v3' else (1.5e-4, 40)
    peak = base * 4096 / 256
    return peak * epoch / warmup if epoch < warmup else peak * cosine_to_zero((epoch - warmup) / (epochs - warmup))


@pytest.mark.parametrize('name', ['moco_v1', 'moco_v2', 'moco_v3', 'moco_v3_vit'])
def test_curves_on_imagenet(name):
    config = recipe('imagenet', name)
    epoch_steps = IMAGENET // config.train.batch_size
    epochs, total = config.train.epochs, config.train.epochs * epoch_steps
    method = image_method(config, total_steps=total, steps_per_epoch=epoch_steps, num_devices=8)
    assert epochs == {'moco_v3': 100, 'moco_v3_vit': 300}.get(name, 200)
    for epoch in (0, 1, epochs // 20, epochs // 3, 121, 161, epochs - 1):
        if epoch >= epochs:
            continue
        step = jnp.int32(epoch * epoch_steps)
        expected = formula(name, epoch, epochs)
        np.testing.assert_allclose(method.learning_rate(step), expected, rtol=1e-3, atol=1e-9)
        momentum = 1 - 0.01 * cosine_to_zero(epoch / epochs) if 'v3' in name else 0.999
        np.testing.assert_allclose(method.ema(step), momentum, atol=1e-6)


def test_the_linear_rule():
    """1706.02677: half the batch, half the rate."""
    config = recipe('imagenet', 'moco_v3')
    rates = []
    for batch in (4096, 2048):
        config.train.batch_size = batch
        method = image_method(config, total_steps=1000, steps_per_epoch=10, num_devices=8)
        rates.append(float(method.learning_rate(jnp.int32(100))))
    np.testing.assert_allclose(rates, [9.6, 4.8], rtol=1e-6)


RESNET50 = 23_508_032  # convolutions and norms of 1512.03385: torchvision's published count without its classifier
COUNTS = {
    'moco_v1': (RESNET50 + 2048 * 128 + 128, 0),
    'moco_v2': (RESNET50 + 2048 * 2048 + 2048 + 2048 * 128 + 128, 0),
    'moco_v3': (RESNET50 + 2048 * 4096 + 2 * 4096 + 4096 * 256, 256 * 4096 + 2 * 4096 + 4096 * 256),
    'moco_v3_vit': (
        12 * (12 * 384**2 + 13 * 384) + 768 * 384 + 4 * 384 + (384 + 4096 + 256) * 4096 + 4 * 4096,
        256 * 4096 + 2 * 4096 + 4096 * 256,
    ),
}


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_counts_on_imagenet(name):
    config = recipe('imagenet', name)
    method = image_method(config, total_steps=1000, steps_per_epoch=10, num_devices=8)
    state = jax.eval_shape(partial(create_train_state, method))
    momentum, online = (sum(x.size for x in jax.tree.leaves(t)) for t in (state.momentum_params, state.params))
    assert (momentum, online - momentum) == COUNTS[name]


def shrunk(name, side=16):
    """A recipe with its own method on small images, a small network and a batch of 32."""
    config = recipe('imagenet' if name in VIT else 'cifar10', name)
    config.data.image_size = side
    config.model.update(name='vit_tiny' if name in VIT else 'tiny', width=16, dim=32, head_width=64, dtype='float32')
    config.model.norm = 'sync'
    config.queue.size = min(config.queue.size, 128)
    config.train.batch_size = 32
    config.optimizer.reference_batch = 32 if name not in VIT else 1
    return config


def losses_of(config, steps, images, devices=1, warmup=2, total=30):
    config.optimizer.warmup_epochs = min(config.optimizer.warmup_epochs, float(warmup))
    mesh = Mesh(np.asarray(jax.devices()[:devices]), (AXIS,))
    method = image_method(config, total_steps=total, steps_per_epoch=1, num_devices=devices)
    mapper = MAPPERS['pmap'](mesh)
    step_fn = mapper.map(partial(train_step, method))
    state = mapper.put_state(replicate(jax.jit(partial(create_train_state, method))(), mesh))
    frozen = np.array(to_host(state.params)['backbone'].get('patch_embed', {}).get('kernel', 0))
    history = []
    for step in range(steps):
        ids = np.random.default_rng(step).integers(len(images), size=config.train.batch_size).astype(np.int32)
        positions = np.arange(len(ids), dtype=np.int32)
        state, metrics = step_fn(state, mapper.put_batch(Batch(images[ids], ids, ids % 4, positions)))
        values = {key: float(value.squeeze()) for key, value in to_host(metrics).items()}
        history.append(values['train/loss'] - values['train/loss_chance'])
    after = np.array(to_host(state.params)['backbone'].get('patch_embed', {}).get('kernel', 0))
    np.testing.assert_array_equal(after, frozen)
    return np.array(history)


def pictures(count=256, side=16):
    """Smooth random colour fields."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


@pytest.mark.parametrize(
    'name',
    ['moco_v1', 'dualcl_v3', *(pytest.param(name, marks=pytest.mark.slow) for name in ('moco_v3', 'moco_v3_vit'))],
)
def test_a_few_steps(name):
    assert np.isfinite(losses_of(shrunk(name), 2, pictures(), devices=2)).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL + VIT)
def test_thirty_steps_learn(name):
    """The loss ends further below its chance level than in the first steps (with a queue: once it is full)."""
    history = losses_of(shrunk(name, side=32), 30, pictures(side=32))
    assert history[-5:].mean() < history[4:9].mean()
