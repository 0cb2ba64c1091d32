"""Compares residual networks with published parameter counts and an explicit float64 forward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.models.encoder import build_encoder
from dualcl_jax.models.norm import BatchNorm
from dualcl_jax.models.resnet import BasicBlock, Bottleneck
from tests.support.config_parts import model_config

PUBLISHED = {'resnet18': (11_689_512, 512), 'resnet34': (21_797_672, 512), 'resnet50': (25_557_032, 2048)}


def make_encoder(**fields):
    defaults = {'width': 4, 'projection': 'linear', 'dim': 8}
    return build_encoder(model_config(**defaults | fields))


def run_block(block, x):
    """Variables with random values, as NumPy, and the block's output in training mode."""
    shapes = jax.eval_shape(lambda key: block.init(key, x, train=True), jax.random.key(0))
    variables = scrambled(shapes)
    out, _ = jax.jit(lambda v: block.apply(v, x, train=True, mutable=['batch_stats']))(variables)
    return variables['params'], out


def abstract_variables(encoder, size=32):
    return jax.eval_shape(lambda key: encoder.init(key, jnp.zeros((2, size, size, 3)), train=True), jax.random.key(0))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameter_counts_are_torchvisions_without_the_classifier(name):
    total, features = PUBLISHED[name]
    encoder = make_encoder(name=name, stem='imagenet', width=64, dim=128)
    variables = abstract_variables(encoder, 64)
    assert count(variables['params']['backbone']) == total - (1000 * features + 1000)
    assert count(variables['params']['projection']) == 128 * features + 128


@pytest.mark.parametrize(
    ('stem', 'size', 'sides'),
    [('imagenet', 64, [16, 8, 4, 2]), ('cifar', 32, [32, 16, 8, 4]), ('imagenet', 63, [16, 8, 4, 2])],
)
def test_stage_shapes(stem, size, sides):
    encoder = make_encoder(stem=stem)
    images = jnp.zeros((2, size, size, 3))
    captured = jax.eval_shape(
        lambda key: encoder.init_with_output(key, images, train=False, capture_intermediates=True, mutable=True),
        jax.random.key(0),
    )[1]['intermediates']['backbone']
    for stage, side in enumerate(sides):
        assert captured[f'layer{stage + 1}_1']['__call__'][0].shape == (2, side, side, 4 * 2**stage)


def test_names_are_torchvisions():
    variables = abstract_variables(make_encoder(name='resnet50'))
    backbone, stats = variables['params']['backbone'], variables['batch_stats']['backbone']
    blocks = {f'layer{s + 1}_{i}' for s, depth in enumerate((3, 4, 6, 3)) for i in range(depth)}
    assert set(backbone) == {'conv1', 'bn1'} | blocks
    inner = {'conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3'}
    for name in blocks:
        assert set(backbone[name]) == inner | ({'downsample_0', 'downsample_1'} if name.endswith('_0') else set())
    assert set(stats['layer1_0']['bn3']) == {'mean', 'var'}
    assert set(backbone['layer1_0']['bn3']) == {'scale', 'bias'}
    assert set(backbone['conv1']) == {'kernel'}
    plain = abstract_variables(make_encoder())['params']['backbone']
    assert 'downsample_0' not in plain['layer1_0']
    assert 'downsample_0' in plain['layer2_0']


def numpy_conv(x, kernel, stride, padding):
    """Cross-correlation with explicit loops over output positions; float64."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    side = kernel.shape[0]
    rows, columns = ((extent - side) // stride + 1 for extent in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            patch = x[:, r * stride : r * stride + side, c * stride : c * stride + side]
            out[:, r, c] = np.einsum('nhwi,hwio->no', patch, np.asarray(kernel, np.float64))
    return out


def numpy_norm(x, params):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(params['scale'], np.float64) + np.asarray(params['bias'])


def scrambled(variables):
    """The same tree with random values, so that no scale is one and no bias is zero."""
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(3)
    return structure.unflatten([rng.uniform(0.2, 1.0, leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize(('side', 'stride', 'channels'), [(6, 2, 3), (5, 2, 3), (5, 1, 4), (5, 1, 3)])
def test_basic_block_matches_float64(side, stride, channels):
    x = np.random.default_rng(0).normal(size=(3, side, side, channels)).astype(np.float32)
    block = BasicBlock(4, stride, partial(BatchNorm))
    p, out = run_block(block, x)
    y = np.maximum(numpy_norm(numpy_conv(x, p['conv1']['kernel'], stride, 1), p['bn1']), 0)
    y = numpy_norm(numpy_conv(y, p['conv2']['kernel'], 1, 1), p['bn2'])
    short = x
    if stride != 1 or channels != 4:
        short = numpy_norm(numpy_conv(x, p['downsample_0']['kernel'], stride, 0), p['downsample_1'])
    np.testing.assert_allclose(out, np.maximum(y + short, 0), atol=1e-4)


def test_bottleneck_strides_in_its_second_convolution():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    block = Bottleneck(2, 2, partial(BatchNorm))
    p, out = run_block(block, x)
    y = np.maximum(numpy_norm(numpy_conv(x, p['conv1']['kernel'], 1, 0), p['bn1']), 0)
    y = np.maximum(numpy_norm(numpy_conv(y, p['conv2']['kernel'], 2, 1), p['bn2']), 0)
    y = numpy_norm(numpy_conv(y, p['conv3']['kernel'], 1, 0), p['bn3'])
    short = numpy_norm(numpy_conv(x, p['downsample_0']['kernel'], 2, 0), p['downsample_1'])
    np.testing.assert_allclose(out, np.maximum(y + short, 0), atol=1e-4)


def test_imagenet_stem_matches_float64():
    """7×7 with stride 2 and padding 3, norm, ReLU, 3×3 maximum pooling with stride 2 and padding 1."""
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    encoder = make_encoder(stem='imagenet')
    variables = scrambled(jax.eval_shape(lambda key: encoder.init(key, images, train=True), jax.random.key(0)))
    apply = partial(encoder.apply, train=True, capture_intermediates=True, mutable=True)
    _, state = jax.jit(apply)(variables, images)
    p = variables['params']['backbone']
    x = np.maximum(numpy_norm(numpy_conv(images, p['conv1']['kernel'], 2, 3), p['bn1']), 0)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.stack([padded[:, r : r + 15 : 2, c : c + 15 : 2] for r in range(3) for c in range(3)]).max(0)
    first = p['layer1_0']
    y = np.maximum(numpy_norm(numpy_conv(pooled, first['conv1']['kernel'], 1, 1), first['bn1']), 0)
    y = numpy_norm(numpy_conv(y, first['conv2']['kernel'], 1, 1), first['bn2'])
    got = state['intermediates']['backbone']['layer1_0']['__call__'][0]
    np.testing.assert_allclose(got, np.maximum(y + pooled, 0), atol=1e-4)
