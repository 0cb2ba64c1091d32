"""No step has an operation whose result depends on an order that varies on GPUs; checked in programs for CUDA."""

import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from dualcl_jax.data.loader import Batch
from dualcl_jax.method.negatives.queue import Queue, empty_queue
from dualcl_jax.method.negatives.queue_loss import Anchors, contrast_with_queue
from dualcl_jax.method.negatives.selectors import build_selector
from dualcl_jax.method.state import create_train_state, state_specs
from dualcl_jax.step import train_step
from dualcl_jax.system.devices import AXIS, ShardMapMapper, device_mesh, shapes
from tests.support.methods import image_method

BATCH, SIDE = 32, 32
SELECTED = ('top_k', 'threshold', 'approx_max_k', 'ring', 'random')
KEY_TERM = {'loss.key_weight': 0.5, 'loss.key_term': 'queue'}
PARTS = {'train.accumulate_steps': 2, 'model.norm': 'local'}
STEPS = {
    'hardest quarter': ('cifar10', '', {}),
    'max pooling': ('imagenet', 'dualcl_v2', {'model.name': 'resnet18'}),
    'shuffled keys': ('cifar10', 'moco_v1', {}),
    'without a queue': ('cifar10', 'moco_v3', {}),
    'key term, batch': ('cifar10', '', {'loss.key_weight': 0.5}),
    'key term, queue': ('cifar10', '', KEY_TERM),
    'in parts': ('cifar10', '', PARTS),
    'sharded queue': ('cifar10', '', {'queue.sharded': True}),
    'these three': ('cifar10', '', KEY_TERM | PARTS | {'queue.sharded': True}),
    **{f'selector {name}': ('cifar10', '', {'negatives.selector': name}) for name in SELECTED},
}
SLOW = ['key term, queue', 'in parts', 'sharded queue', *(f'selector {name}' for name in SELECTED)]
"""Steps whose scatters other tests have: 'these three', and of selectors in the whole step `test_a_selector_alone`."""


def program(config_name: str, recipe: str, fields: dict[str, object]) -> str:
    """The text of a step of four devices, lowered for CUDA."""
    module = importlib.import_module(f'configs.{config_name}')
    config = module.get_config(recipe) if recipe else module.get_config()
    small = {'model.name': 'tiny', 'model.width': 4, 'model.head_width': 16, 'data.image_size': SIDE}
    sizes = {'queue.size': min(config.queue.size, 64), 'train.batch_size': BATCH}
    config.update_from_flattened_dict(small | sizes | fields)
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    mesh = device_mesh()
    method = image_method(config, total_steps=100, steps_per_epoch=10, num_devices=mesh.size)
    state = shapes(jax.eval_shape(partial(create_train_state, method)), mesh, state_specs(method))
    column = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    batch = Batch(jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.uint8), column, column, column)
    step = ShardMapMapper(mesh, state_specs(method)).map(partial(train_step, method))
    traced = step.trace(state, shapes(batch, mesh, PartitionSpec(AXIS)))
    return traced.lower(lowering_platforms=('cuda',)).as_text()


def unique_indices(text: str) -> set[str]:
    """What the scatters of a program say of their indices, 'true' or 'false'."""
    assert 'select_and_scatter' not in text
    unique = re.findall(r'"stablehlo\.scatter".*?unique_indices = (\w+)', text, flags=re.DOTALL)
    assert len(unique) == text.count('"stablehlo.scatter"')
    return set(unique)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in STEPS]
)
def test_every_scatter_has_unique_indices(name: str) -> None:
    assert unique_indices(program(*STEPS[name])) == ({'true'} if name != 'without a queue' else set())


@pytest.mark.parametrize('name', SELECTED)
def test_a_selector_alone(name: str) -> None:
    """The gradient of the contrast with a queue, which is where a step has its selector, lowered for CUDA."""
    select = build_selector(name, {'skip': 3})

    def loss(anchors: jax.Array, positives: jax.Array, rows: Anchors, queue: Queue) -> jax.Array:
        return contrast_with_queue(anchors, positives, rows, queue, temperature=0.2, select=select, k=9).loss.sum()

    vectors, column = jax.ShapeDtypeStruct((BATCH, 8), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    rngs = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
    queue = jax.eval_shape(partial(empty_queue, 64, 8))
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(vectors, vectors, Anchors(column, column, column, rngs), queue)
    assert unique_indices(traced.lower(lowering_platforms=('cuda',)).as_text()) <= {'true'}


def test_a_scatter_whose_order_matters_is_found() -> None:
    """JAX writes such a scatter in the form that the tests above look for."""

    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: (jax.lax.top_k(x, 3)[0] ** 2).sum())(x)

    text = jax.jit(gradient).trace(jnp.zeros((2, 8))).lower(lowering_platforms=('cuda',)).as_text()
    assert unique_indices(text) == {'false'}
