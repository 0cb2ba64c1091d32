"""Compares schedules with their formulas, and optimizers with NumPy."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dualcl_jax.method.optim import (
    MOMENTUM_SCHEDULES,
    build_optimizer,
    count_schedule,
    decay_mask,
    is_weight,
    learning_rate_schedule,
    step_schedule,
)

SHAPES = {'conv': {'kernel': (3, 3, 2, 4)}, 'bn': {'scale': (4,), 'bias': (4,)}, 'fc': {'kernel': (4, 3), 'bias': (3,)}}


def expected_rate(step, peak, total, warmup):
    if step < warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * min((step - warmup) / (total - warmup), 1))) / 2


@pytest.mark.parametrize(
    ('peak', 'total', 'warmup'), [(0.06, 50, 0), (1.5, 50, 10), (0.3, 3, 2), (0.06, 39_000, 1_950)]
)
def test_learning_rate(peak, total, warmup):
    steps = np.unique(np.linspace(0, total + 3, 54).round().astype(np.int32))
    schedule = learning_rate_schedule(peak, total, warmup)
    rates = jax.jit(jax.vmap(schedule))(jnp.asarray(steps))
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, [expected_rate(t, peak, total, warmup) for t in steps.tolist()], atol=1e-6 * peak)
    assert schedule(jnp.int32(0)) == (0 if warmup else np.float32(peak))
    assert schedule(jnp.int32(warmup)) == np.float32(peak)
    np.testing.assert_allclose(schedule(jnp.int32(total)), 0, atol=1e-7 * peak)


@pytest.mark.parametrize('warmup', [0, 7])
def test_learning_rate_in_steps(warmup):
    rates = jax.jit(jax.vmap(step_schedule(1.5, 50, warmup)))(jnp.arange(53, dtype=jnp.int32))
    expected = [1.5 * (t / warmup if t < warmup else 1 if t < 30 else 0.1 if t < 40 else 0.01) for t in range(53)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize('name', ['linear', 'cosine'])
@pytest.mark.parametrize(('first', 'last'), [(1000, 100), (3, 64)])
def test_number_of_negatives(name, first, last):
    counts = jax.jit(jax.vmap(count_schedule(name, first, last, 40)))(jnp.arange(41, dtype=jnp.int32))
    assert counts.dtype == jnp.int32
    progress = np.arange(41) / 40
    share = progress if name == 'linear' else (1 - np.cos(np.pi * progress)) / 2
    np.testing.assert_allclose(counts, first + (last - first) * share, rtol=0, atol=0.5001)
    assert (counts[0], counts[-1]) == (first, last)


@pytest.mark.parametrize(('momentum', 'total'), [(0.99, 40), (0.996, 1000), (0.0, 5), (1.0, 5)])
def test_momentum_of_the_momentum_encoder(momentum, total):
    steps = np.unique(np.linspace(0, total, 21).astype(np.int32))
    constant = jax.vmap(MOMENTUM_SCHEDULES['constant'](momentum, total))(jnp.asarray(steps))
    np.testing.assert_array_equal(constant, np.full(len(steps), np.float32(momentum)))
    rising = jax.vmap(MOMENTUM_SCHEDULES['cosine'](momentum, total))(jnp.asarray(steps))
    assert constant.dtype == rising.dtype == jnp.float32
    expected = [1 - (1 - momentum) * (1 + math.cos(math.pi * t / total)) / 2 for t in steps.tolist()]
    np.testing.assert_allclose(rising, expected, atol=2e-7)


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def test_weights_are_kernels():
    kinds = is_weight(random_tree(0))
    assert kinds == {
        'conv': {'kernel': True},
        'bn': {'scale': False, 'bias': False},
        'fc': {'kernel': True, 'bias': False},
    }


@pytest.mark.parametrize('everything', [False, True])
def test_frozen_layers_do_not_decay(everything):
    decays = decay_mask(decay_norm_and_bias=everything, frozen=('conv', 'bn'))(random_tree(0))
    assert decays == {
        'conv': {'kernel': False},
        'bn': {'scale': False, 'bias': False},
        'fc': {'kernel': True, 'bias': everything},
    }


def schedule(step):
    return learning_rate_schedule(0.5, 6, 2)(step)


def take_steps(name, gradients, decay_norm_and_bias, momentum=0.9, weight_decay=0.1, clip=0.0):
    """The parameters after each of the updates, on the device."""
    name, _, lars = name.partition(' ')
    optimizer = build_optimizer(
        name,
        schedule,
        momentum=momentum,
        weight_decay=weight_decay,
        decay_norm_and_bias=decay_norm_and_bias,
        lars=lars or 'rate_first',
        clip=clip,
    )
    params = random_tree(0)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    history = []
    # optax's bias correction raises a float to the int32 count of steps, which strict promotion forbids.
    promotion = jax.numpy_dtype_promotion('standard' if name == 'adamw' else 'strict')
    for gradient in gradients:
        with promotion:
            updates, state = update(gradient, state, params)
        params = jax.tree.map(np.add, params, updates)
        history.append(params)
    return history


def numpy_steps(rule, gradients, decay_norm_and_bias, momentum=0.9, weight_decay=0.1):
    """Applies `rule(parameter, gradient, memory, step, rate, momentum, decay)` to each leaf, in float64."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.float64, random_tree(0)))
    memories = [{} for _ in leaves]
    history = []
    for step, gradient in enumerate(gradients):
        rate = expected_rate(step, 0.5, 6, 2)
        leaves = [
            rule(
                p, np.float64(g), memory, step, rate, momentum, weight_decay if decay_norm_and_bias or p.ndim > 1 else 0
            )
            for p, g, memory in zip(leaves, jax.tree.leaves(gradient), memories, strict=True)
        ]
        history.append(jax.tree.unflatten(structure, leaves))
    return history


def pytorch_sgd(parameter, gradient, memory, step, rate, momentum, decay):
    gradient = gradient + decay * parameter
    memory['buffer'] = momentum * memory['buffer'] + gradient if memory else gradient
    return parameter - rate * memory['buffer']


def adamw(parameter, gradient, memory, step, rate, momentum, decay):
    """1711.05101, Algorithm 2, with the decay times the learning rate as in PyTorch; β2 .999, ε 1e-8."""
    memory['m'] = momentum * memory.get('m', 0) + (1 - momentum) * gradient
    memory['v'] = 0.999 * memory.get('v', 0) + 0.001 * gradient**2
    m, v = memory['m'] / (1 - momentum ** (step + 1)), memory['v'] / (1 - 0.999 ** (step + 1))
    return parameter - rate * (m / (np.sqrt(v) + 1e-8) + decay * parameter)


def lars(parameter, gradient, memory, step, rate, momentum, decay):
    """1708.03888 with the trust coefficient .001; biases and norm scales have the plain rate."""
    update = gradient + decay * parameter
    if parameter.ndim > 1:
        update = update * 0.001 * np.linalg.norm(parameter) / np.linalg.norm(update)
    memory['buffer'] = momentum * memory.get('buffer', 0) + rate * update
    return parameter - memory['buffer']


def moco_v3_lars(parameter, gradient, memory, step, rate, momentum, decay):
    """`LARS.step` of the code of 2104.02057: the momentum is of updates without the rate."""
    update = gradient + decay * parameter
    if parameter.ndim > 1:
        update = update * 0.001 * np.linalg.norm(parameter) / np.linalg.norm(update)
    memory['mu'] = momentum * memory.get('mu', 0) + update
    return parameter - rate * memory['mu']


RULES = {'sgd': pytorch_sgd, 'adamw': adamw, 'lars': lars, 'lars rate_last': moco_v3_lars}


def assert_same_steps(ours, expected):
    for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
        jax.tree.map(
            lambda x, y, step=step: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=f'step {step}'), a, b
        )


@pytest.mark.parametrize('decay_norm_and_bias', [False, True])
@pytest.mark.parametrize('name', RULES)
def test_optimizers_step_by_step(name, decay_norm_and_bias):
    gradients = [random_tree(seed) for seed in range(1, 6)]
    ours = take_steps(name, gradients, decay_norm_and_bias)
    assert_same_steps(ours, numpy_steps(RULES[name], gradients, decay_norm_and_bias))
    assert jax.tree.structure(ours[-1]) == jax.tree.structure(random_tree(0))


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_only_larger_gradients_are_clipped_before_decay_and_momentum(name):
    scales = (1.0, 0.05, 3.0, 0.02)
    gradients = [optax.tree.scale(scale, random_tree(seed)) for seed, scale in enumerate(scales, 1)]
    norms = [np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree))) for tree in gradients]
    assert [norm > 1 for norm in norms] == [True, False, True, False]
    clipped = [optax.tree.scale(1 / max(norm, 1), tree) for norm, tree in zip(norms, gradients, strict=True)]
    assert_same_steps(take_steps(name, gradients, True, clip=1.0), numpy_steps(RULES[name], clipped, True))


def test_the_optimizers_work_under_optax():
    """They are ordinary gradient transformations, which can be chained."""
    sgd = build_optimizer('sgd', schedule, momentum=0.9, weight_decay=0.0, decay_norm_and_bias=True)
    optimizer = optax.chain(optax.scale(2.0), sgd)
    params = random_tree(0)
    state = optimizer.init(params)
    for gradient in (random_tree(1), random_tree(2)):
        updates, state = optimizer.update(gradient, state, params)
    expected = jax.tree.map(lambda a, b: -0.25 * 2 * (0.9 * a + b), random_tree(1), random_tree(2))
    chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-6)
