"""Compares batch normalisation with float64 NumPy, and its groups on four devices with one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualcl_jax.models.norm import BatchNorm, norm_layout
from dualcl_jax.system.errors import UserError

CHANNELS = 3


def make_case(batch, seed=0):
    """Inputs [batch, 2, 2, 3], parameters, running statistics, and weights for a non-uniform loss."""
    rng = np.random.default_rng(seed)
    x = rng.normal(1.5, 2.0, (batch, 2, 2, CHANNELS))
    params = {'scale': rng.uniform(0.5, 2, CHANNELS), 'bias': rng.normal(size=CHANNELS)}
    stats = {'mean': rng.normal(size=CHANNELS), 'var': rng.uniform(0.5, 2, CHANNELS)}
    weights = rng.normal(size=x.shape)
    return jax.tree.map(lambda a: a.astype(np.float32), (x, params, stats, weights))


def reference(x, params, stats, groups):
    """Training-mode output and new running statistics in float64."""
    x = np.asarray(x, np.float64)
    out, means, variances = [], [], []
    for part in np.split(x, groups):
        mean, var = part.mean((0, 1, 2)), part.var((0, 1, 2))
        out.append((part - mean) / np.sqrt(var + 1e-5) * params['scale'] + params['bias'])
        means.append(mean)
        variances.append(part.var((0, 1, 2), ddof=1))
    new = {'mean': np.mean(means, 0), 'var': np.mean(variances, 0)}
    return np.concatenate(out), {key: 0.9 * stats[key] + 0.1 * new[key] for key in new}


def apply(layer, x, params, stats):
    out, updated = layer.apply({'params': params, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])
    return out, updated['batch_stats']


def loss_and_state(layer, params, x, stats, weights):
    out, new_stats = apply(layer, x, params, stats)
    return jnp.mean(jnp.square(out) * weights), (out, new_stats)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_training_matches_float64(groups):
    x, params, stats, _ = make_case(8)
    out, new_stats = apply(BatchNorm(groups=groups), x, params, stats)
    want, want_stats = reference(x, params, stats, groups)
    np.testing.assert_allclose(out, want, atol=2e-6, rtol=2e-6)
    for key, value in want_stats.items():
        np.testing.assert_allclose(new_stats[key], value, rtol=1e-6)


def test_evaluation_uses_running_statistics_and_changes_nothing():
    x, params, stats, _ = make_case(6)
    layer = BatchNorm(groups=4, span=2, axis_name='not_bound')
    out = layer.apply({'params': params, 'batch_stats': stats}, x, train=False)
    x64 = np.asarray(x, np.float64)
    want = (x64 - stats['mean']) / np.sqrt(stats['var'].astype(np.float64) + 1e-5) * params['scale'] + params['bias']
    np.testing.assert_allclose(out, want, atol=2e-6, rtol=2e-6)


def test_initialisation_needs_no_axis():
    variables = BatchNorm(axis_name='not_bound').init(jax.random.key(0), jnp.ones((4, 2, 2, CHANNELS)), train=True)
    np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(CHANNELS))
    np.testing.assert_array_equal(variables['batch_stats']['var'], np.ones(CHANNELS))


def test_bfloat16_keeps_float32_statistics():
    x, params, stats, _ = make_case(8)
    out, new_stats = apply(BatchNorm(dtype=jnp.bfloat16), jnp.asarray(x, jnp.bfloat16), params, stats)
    assert out.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(new_stats)} == {jnp.dtype('float32')}
    want, _ = reference(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64), params, stats, 1)
    np.testing.assert_allclose(np.asarray(out, np.float64), want, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize(
    ('norm', 'global_groups'),
    [('local', 4), ('sync', 1), ('split:1', 1), ('split:2', 2), ('split:4', 4), ('split:8', 8)],
)
@pytest.mark.parametrize('mapper', ['pmap', 'shard_map'])
def test_four_devices_equal_one(norm, global_groups, mapper):
    """Outputs, running statistics and averaged gradients of parameters and inputs equal those of one device."""
    x, params, stats, weights = make_case(16)
    groups, span = norm_layout(norm, 4)
    layer = BatchNorm(groups=groups, span=span, axis_name='data')

    def step(params, x, stats, weights):
        grads, (out, new_stats) = jax.grad(
            lambda p, x: loss_and_state(layer, p, x, stats, weights), argnums=(0, 1), has_aux=True
        )(params, x)
        return jax.lax.pmean(grads[0], 'data'), grads[1] / 4, out, new_stats

    if mapper == 'pmap':
        mapped = jax.pmap(step, axis_name='data', in_axes=(None, 0, None, 0))
        args = params, x.reshape(4, 4, 2, 2, CHANNELS), stats, weights.reshape(4, 4, 2, 2, CHANNELS)
    else:
        whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec('data')
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
        specs = {'mesh': mesh, 'in_specs': (whole, split, whole, split), 'out_specs': split}
        body = jax.shard_map(lambda *a: jax.tree.map(lambda leaf: leaf[None], step(*a)), check_vma=False, **specs)
        mapped, args = jax.jit(body), (params, x, stats, weights)
    param_grad, x_grad, out, new_stats = jax.tree.map(np.asarray, mapped(*args))
    x_grad, out = x_grad.reshape(x.shape), out.reshape(x.shape)

    one = BatchNorm(groups=global_groups)
    (want_param_grad, want_x_grad), (want_out, want_stats) = jax.grad(
        lambda p, x: loss_and_state(one, p, x, stats, weights), argnums=(0, 1), has_aux=True
    )(params, x)
    np.testing.assert_allclose(out, want_out, atol=1e-5)
    np.testing.assert_allclose(x_grad, want_x_grad, atol=1e-5)
    for device in range(4):
        for key in want_stats:
            np.testing.assert_allclose(new_stats[key][device], want_stats[key], rtol=1e-5)
            np.testing.assert_array_equal(new_stats[key][device], new_stats[key][0])
        for key in params:
            np.testing.assert_allclose(param_grad[key][device], want_param_grad[key], atol=1e-5)


def test_gradient_matches_finite_differences():
    x, params, stats, weights = make_case(8)
    layer = BatchNorm(groups=2)
    with jax.enable_x64(True):
        grad = jax.grad(lambda x: loss_and_state(layer, params, x, stats, weights)[0])(x)

    def loss64(x):
        return np.mean(np.square(reference(x, params, stats, 2)[0]) * weights)

    direction = np.random.default_rng(1).normal(size=x.shape)
    want = (loss64(x + 1e-5 * direction) - loss64(x - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(np.sum(np.asarray(grad, np.float64) * direction), want, rtol=1e-4)


@pytest.mark.parametrize(('norm', 'collectives'), [('local', 1), ('split:2', 1), ('sync', 1)])
def test_one_collective_in_the_forward_pass(norm, collectives):
    x, params, stats, _ = make_case(4)
    groups, span = norm_layout(norm, 4)
    layer = BatchNorm(groups=groups, span=span, axis_name='data')
    text = str(jax.make_jaxpr(lambda *a: apply(layer, *a), axis_env=[('data', 4)])(x, params, stats))
    assert sum(text.count(f' {name}[') for name in ('psum', 'all_gather', 'psum_invariant')) == collectives


def test_shapes_that_do_not_fit_are_refused():
    x, params, stats, _ = make_case(6)
    with pytest.raises(ValueError, match='batch of 6 on each device does not split into 4'):
        apply(BatchNorm(groups=4), x, params, stats)
    layer = BatchNorm(span=3, axis_name='data')
    with pytest.raises(ValueError, match='span of 3 devices does not divide the 4'):
        jax.make_jaxpr(lambda *a: apply(layer, *a), axis_env=[('data', 4)])(x, params, stats)


@settings(max_examples=50)
@given(groups=st.integers(1, 64), devices=st.integers(1, 64))
def test_norm_layout_of_given_groups(groups, devices):
    if groups % devices and devices % groups:
        with pytest.raises(UserError, match=r'model\.norm'):
            norm_layout(f'split:{groups}', devices)
        return
    per_device, span = norm_layout(f'split:{groups}', devices)
    assert per_device * devices == groups * span
    assert devices % span == 0


def test_norm_layout_of_the_named_modes():
    assert norm_layout('local', 8) == (1, 1)
    assert norm_layout('sync', 8) == (1, 8)
    assert norm_layout('sync', 1) == (1, 1)


@pytest.mark.parametrize('text', ['', 'split', 'split:', 'split:0', 'split:-1', 'split:x', 'batch', 'local:2'])
def test_norm_layout_refuses_other_texts(text):
    with pytest.raises(UserError, match=r'model\.norm'):
        norm_layout(text, 4)
