"""Compares vision transformers with an explicit float64 forward pass and the paper's parameter counts."""

import math
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.models.encoder import build_encoder
from dualcl_jax.models.vit import VisionTransformer, sine_cosine_positions
from tests.support.config_parts import model_config
from tests.support.runs import REPOSITORY

DIM, HEADS, DEPTH, PATCH = 8, 2, 2, 4


def make(**fields):
    sizes = {'patch': PATCH, 'dim': DIM, 'depth': DEPTH, 'heads': HEADS, 'norm': None}
    return VisionTransformer(**{**sizes, **fields})


def scrambled(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)


def random_model(**fields):
    """A model, random variables, and images 8×12: two rows of three patches."""
    model = make(**fields)
    images = np.random.default_rng(1).normal(size=(3, 8, 12, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: model.init(key, images, train=True), jax.random.key(0))
    return model, scrambled(shapes), images


def layer_norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * params['scale'] + params['bias']


def dense(x, params):
    return x @ params['kernel'] + params['bias']


def attention(x, params):
    """Reference for one image [T, D]."""
    qkv = dense(x, params['qkv'])
    mixed = []
    for head in range(HEADS):
        q, k, v = (
            qkv[:, part * DIM + head * (DIM // HEADS) : part * DIM + (head + 1) * (DIM // HEADS)] for part in range(3)
        )
        weights = np.exp(q @ k.T / math.sqrt(DIM // HEADS))
        mixed.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    return dense(np.concatenate(mixed, axis=1), params['proj'])


def forward(params, image):
    """Reference features of the class token for one image [H, W, C], in float64."""
    rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
    tokens = [params['cls_token']]
    for row in range(rows):
        for column in range(columns):
            patch = image[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            position = []
            for place in (row, column):
                angles = [place / 10_000 ** (i / (DIM // 4)) for i in range(DIM // 4)]
                position += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            tokens.append(dense(patch.reshape(-1), params['patch_embed']) + np.array(position))
    x = np.stack(tokens)
    erf = np.vectorize(math.erf)
    for index in range(DEPTH):
        block = params[f'blocks_{index}']
        x = x + attention(layer_norm(x, block['norm1']), block)
        hidden = dense(layer_norm(x, block['norm2']), block['fc1'])
        x = x + dense(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, block['fc2'])
    return layer_norm(x, params['norm'])[0]


def test_forward_pass():
    model, variables, images = random_model()
    expected = [forward(jax.tree.map(np.float64, variables['params']), np.float64(image)) for image in images]
    found = jax.jit(lambda v: model.apply(v, images, train=True))(variables)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_with_the_cpu_options_of_programs():
    """XLA:CPU does not compile oneDNN's layer norm of bfloat16 with a float32 result."""
    program = """
from dualcl_jax.system.processes import start
start._set_cpu_flags()
import jax, jax.numpy as jnp
from dualcl_jax.models.encoder import build_encoder
from tests.support.config_parts import model_config
encoder, images = build_encoder(model_config(name='vit_tiny', dtype='bfloat16')), jnp.ones((7, 16, 16, 3))
variables = encoder.init(jax.random.key(0), images, train=False)
forward = jax.jit(lambda variables, images: encoder.apply(variables, images, train=False).backbone)
features = forward(variables, images)
print(features.dtype)
"""
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == 'float32\n', done.stderr[-2000:]


def test_positions_of_a_grid():
    """Each quarter of the columns is the sine or cosine of a row or column, and constant along the other."""
    found = sine_cosine_positions(3, 5, 8).reshape(3, 5, 4, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[2, 3, 0], [math.sin(2), math.sin(0.02)], rtol=1e-6)
    np.testing.assert_allclose(found[2, 3, 3], [math.cos(3), math.cos(0.03)], rtol=1e-6)
    assert np.ptp(found[:, :, :2], axis=1).max() == np.ptp(found[:, :, 2:], axis=0).max() == 0


@pytest.mark.parametrize('frozen', [True, False])
def test_only_a_frozen_patch_projection_has_no_gradient(frozen):
    model, variables, images = random_model(freeze_patches=frozen)
    gradient = jax.jit(jax.grad(lambda v: (model.apply(v, images, train=True) ** 3).sum()))(variables)['params']
    norms = {
        jax.tree_util.keystr(path): float(jnp.abs(leaf).max()) for path, leaf in jax.tree.leaves_with_path(gradient)
    }
    for path, norm in norms.items():
        assert (norm == 0) == (frozen and 'patch_embed' in path), path


def test_rematerialisation_changes_no_gradient():
    model, variables, images = random_model()
    plain, again = (
        jax.jit(jax.grad(lambda v, model=model: (model.apply(v, images, train=True) ** 3).sum()))(variables)
        for model in (model, make(remat=True))
    )
    chex.assert_trees_all_close(plain, again, rtol=1e-4, atol=1e-4)


def test_initial_values():
    """Every kernel has Glorot's bound, with query, key and value as separate layers; biases are 0 (2104.02057)."""
    model = make(dim=64, heads=4, depth=1)
    params = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=True))(jax.random.key(0))['params']
    bounds = {'qkv': 64 + 64, 'proj': 64 + 64, 'fc1': 64 + 256, 'fc2': 256 + 64}
    kernels = {name: (params['blocks_0'][name], total) for name, total in bounds.items()}
    kernels['patch_embed'] = (params['patch_embed'], 3 * 16 + 64)
    for name, (layer, total) in kernels.items():
        bound = math.sqrt(6 / total)
        largest = float(jnp.abs(layer['kernel']).max())
        assert 0.98 * bound < largest <= bound, name
        np.testing.assert_allclose(layer['kernel'].std(), bound / math.sqrt(3), rtol=0.05)
        assert float(jnp.abs(layer['bias']).max()) == 0


def published_count(dim, depth, patch):
    """Parameters of 2010.11929's encoder: 12 D² + 13 D per block, the patches, the class token, the last norm."""
    return depth * (12 * dim**2 + 13 * dim) + 3 * patch**2 * dim + dim + dim + 2 * dim


def test_parameters_of_vit_s16():
    """22 million parameters of ViT-S/16 (2104.02057, table 2), plus MoCo v3 heads of hidden width 4,096."""
    fields = {'name': 'vit_s16', 'projection': 'mlp3_bn', 'predictor': 'mlp2_bn'}
    encoder = build_encoder(model_config(**fields, head_width=4096, dim=256))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: encoder.init(key, x, train=True, predict=True), jax.random.key(0), images)
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes['params'].items()}
    assert count['backbone'] == published_count(384, 12, 16) == 21_590_016
    assert count['projection'] == 384 * 4096 + 4096 * 4096 + 4096 * 256 + 4 * 4096
    assert count['predictor'] == 256 * 4096 + 4096 * 256 + 2 * 4096
