"""The whole encoder: outputs, dtypes, two views in one call, devices, and config errors."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.models.encoder import MODELS, build_encoder
from dualcl_jax.models.heads import PROJECTIONS
from dualcl_jax.models.norm import norm_layout
from dualcl_jax.models.resnet import BasicBlock, ResNet
from dualcl_jax.system.errors import UserError
from tests.support.config_parts import model_config

FIELDS = {'name': 'short', 'width': 4, 'projection': 'linear', 'dim': 8, 'head_width': 16}


@pytest.fixture(autouse=True)
def short_resnet(monkeypatch):
    """A network of two blocks that compiles quickly, for tests that do not depend on the depth."""
    monkeypatch.setitem(MODELS, 'short', partial(ResNet, (1, 1, 0, 0), BasicBlock))


def make(groups=1, span=1, axis_name=None, **fields):
    return build_encoder(model_config(**FIELDS | fields), groups=groups, span=span, axis_name=axis_name)


SIZES = {'resnet18': 32, 'resnet34': 32, 'resnet50': 128, 'vit_tiny': 64}
"""Features of the backbones of width 4."""


def init(encoder, images):
    return jax.jit(lambda key: encoder.init(key, images, train=True))(jax.random.key(0))


def apply(encoder, variables, images, train=False):
    mutable = ['batch_stats'] if train else False
    return jax.jit(lambda v, x: encoder.apply(v, x, train=train, mutable=mutable))(variables, images)


def random_images(batch, side=8):
    return np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ('name', 'features', 'projection'),
    [(name, size, 'mlp2_bn') for name, size in SIZES.items()] + [('tiny', 8, projection) for projection in PROJECTIONS],
    ids=str,
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_outputs_and_variables_are_float32(name, features, projection, dtype):
    assert name in MODELS
    encoder = make(name=name, projection=projection, dtype=dtype)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    (backbone, projected), variables = jax.eval_shape(
        lambda key, x: encoder.init_with_output(key, x, train=True), jax.random.key(0), images
    )
    assert backbone.shape == (2, features)
    assert projected.shape == (2, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves((backbone, projected, variables))} == {jnp.dtype('float32')}


def test_bfloat16_is_near_float32():
    images = random_images(8)
    variables = init(make(), images)
    exact = apply(make(), variables, images)
    rough = apply(make(dtype='bfloat16'), variables, images)
    assert not np.array_equal(exact.backbone, rough.backbone)
    for a, b in zip(exact, rough, strict=True):
        np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.abs(a).max()))


def test_projections_match_numpy():
    images = random_images(2)
    for kind in ('linear', 'tanh', 'mlp'):
        encoder = make(name='tiny', projection=kind)
        variables = jax.tree.map(np.asarray, init(encoder, images))
        backbone, projected = apply(encoder, variables, images)
        x = np.asarray(backbone, np.float64)
        layers = variables['params']['projection']
        if kind == 'mlp':
            x = np.maximum(x @ layers['fc_0']['kernel'] + layers['fc_0']['bias'], 0)
        last = layers['fc_2' if kind == 'mlp' else 'fc']
        x = x @ last['kernel'] + last['bias']
        np.testing.assert_allclose(projected, np.tanh(x) if kind == 'tanh' else x, atol=1e-5)


def test_two_views_in_one_call_equal_two_calls():
    """The views are separate groups; the running statistics are updated once, by the average of both."""
    first, second = random_images(8), 2 * random_images(8) + 1
    encoder = make()
    variables = init(encoder, first)
    both = encoder.clone(groups=2 * encoder.groups)
    together, state = apply(both, variables, np.concatenate([first, second]), train=True)
    apart = [apply(encoder, variables, view, train=True) for view in (first, second)]
    for half, (encoded, _) in zip((slice(0, 8), slice(8, 16)), apart, strict=True):
        np.testing.assert_allclose(together.projection[half], encoded.projection, atol=1e-4)
    want = jax.tree.map(lambda a, b: (a + b) / 2, apart[0][1], apart[1][1])
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('norm', 'global_groups'), [('sync', 1), ('split:2', 2)])
def test_four_devices_equal_one(norm, global_groups):
    """The gradient of a whole network, averaged over devices, equals that of the global batch on one device."""
    images = random_images(16)
    groups, span = norm_layout(norm, 4)
    one, four = make(groups=global_groups), make(groups=groups, span=span, axis_name='data')
    variables = init(one, images)

    def loss(params, encoder, images):
        out, state = encoder.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
        return jnp.mean(jnp.square(jnp.sin(out.projection))), state['batch_stats']

    def step(images):
        grads, state = jax.grad(loss, has_aux=True)(variables['params'], four, images)
        return jax.lax.pmean(grads, 'data'), state

    grads, state = jax.pmap(step, axis_name='data')(images.reshape(4, 4, *images.shape[1:]))
    want_grads, want_state = jax.jit(lambda p: jax.grad(loss, has_aux=True)(p, one, images))(variables['params'])
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(want_grads))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a[0], b, atol=1e-5 * max(1, largest))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(want_state), strict=True):
        np.testing.assert_array_equal(a[0], a[3])
        np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5)


def test_initialisation_does_not_depend_on_layout():
    images = random_images(4)
    plain = init(make(), images)
    other = init(make(groups=2, span=4, axis_name='data'), images)
    chex.assert_trees_all_equal(plain, other)


@pytest.mark.parametrize(
    'field',
    [{'name': 'resnet19'}, {'stem': 'big'}, {'projection': 'cubic'}, {'dtype': 'float16'}, {'width': 0}, {'dim': 0}],
    ids=lambda field: next(iter(field)),
)
def test_unknown_choices_name_the_field(field):
    with pytest.raises(UserError, match=rf'model\.{next(iter(field))}='):
        make(**field)
