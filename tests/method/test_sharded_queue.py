"""Compares a queue that is sharded over n devices, K/n slots on each, with the same queue on every device."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, PartitionSpec

from dualcl_jax.losses import normalize
from dualcl_jax.method.negatives import queue_loss, top_k
from dualcl_jax.method.negatives.queue import Queue, empty_queue, enqueue, mean_age, valid
from dualcl_jax.method.negatives.queue_loss import Anchors, contrast_with_queue
from dualcl_jax.method.negatives.selectors import SELECTORS, build_selector
from dualcl_jax.method.state import create_train_state, state_specs
from dualcl_jax.system.devices import REPLICATED, place
from dualcl_jax.workdir.checkpoint import Checkpoints
from dualcl_jax.workdir.checksum import state_sha256
from tests.support.methods import image_method
from tests.support.steps import assert_follows_reference, full_recipe, make_batches, run

AXIS = 'batch'
B, K, D, SELECTED = 16, 48, 8, 9
SLOW = pytest.mark.slow
EIGHT = [SLOW, pytest.mark.skipif(len(jax.devices()) < 8, reason='needs TEST_DEVICES=8')]
SLOTS, WHOLE = PartitionSpec(AXIS), PartitionSpec()
QUEUE = Queue(SLOTS, SLOTS, SLOTS, SLOTS, WHOLE, WHOLE)


def on_devices(devices: int, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Maps a function over the parts of `devices` devices."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


Rows = tuple[jax.Array, jax.Array, Anchors]


def make(filled: int, kinds: int) -> tuple[Rows, Queue]:
    """Anchors with their positives, and a queue whose first slots contain keys, some of them equal."""
    rngs = jax.random.split(jax.random.key(0), 5)
    keys = normalize(jax.random.normal(rngs[0], (kinds, D)))[jnp.arange(filled) % kinds]
    ids, labels = (jax.random.randint(rng, (filled,), 0, 6) for rng in rngs[1:3])
    anchors, positives = (normalize(jax.random.normal(rng, (B, D))) for rng in rngs[3:])
    which = jnp.arange(B, dtype=jnp.int32) % 6
    rows = Anchors(which, which, which % 4 - 1, jax.random.split(jax.random.key(1), B))
    return (anchors, positives, rows), enqueue(empty_queue(K, D), keys, ids, labels, jnp.int32(0))


def differentiated(
    selector: str, axis_name: str | None, rows: Rows, queue: Queue, weights: jax.Array, hardness: float = 0.0
) -> Any:
    """The contrast of each anchor, and the gradients of the weighted losses by anchors and positives."""

    def loss(anchors: jax.Array, positives: jax.Array) -> tuple[jax.Array, Any]:
        contrast = contrast_with_queue(
            anchors,
            positives,
            rows[2],
            queue,
            temperature=0.2,
            hardness=hardness,
            select=build_selector(selector, {'skip': 3}, axis_name),
            k=SELECTED,
            axis_name=axis_name,
        )
        return (weights * contrast.loss).sum(), contrast

    (_, contrast), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(*rows[:2])
    return contrast, gradients


@pytest.mark.parametrize('selector', [name for name, spec in SELECTORS.items() if spec.sharded is not None])
@pytest.mark.parametrize(
    'devices', [pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), 4, pytest.param(8, marks=EIGHT)]
)
def test_contrast(monkeypatch: pytest.MonkeyPatch, devices: int, selector: str) -> None:
    """There are several blocks of anchors. The queue is empty, nearly empty, or full of different or of equal keys."""
    size = 4 * 4 * K // devices
    monkeypatch.setattr(queue_loss, 'SHARDED', queue_loss.Blocks(size, 1))
    replicated = jax.jit(partial(differentiated, selector, None))
    sharded = on_devices(devices, partial(differentiated, selector, AXIS), (SLOTS, QUEUE, SLOTS), SLOTS)
    weights = jnp.linspace(0.5, 2.0, B)  # so that the gradients of the rows differ
    for filled, kinds in ((0, 1), (5, 5), (30, 30), (30, 5), (K, K), (K, 3)):
        rows, queue = make(filled, kinds)
        found, expected = sharded(rows, queue, weights), replicated(rows, queue, weights)
        chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)
        assert filled < 30 or (expected[0].negatives > 0).all()


def test_reweighting_by_hardness() -> None:
    replicated = jax.jit(partial(differentiated, 'threshold', None, hardness=1.5))
    sharded = on_devices(4, partial(differentiated, 'threshold', AXIS, hardness=1.5), (SLOTS, QUEUE, SLOTS), SLOTS)
    weights = jnp.linspace(0.5, 2.0, B)
    for filled in (0, 5, K):
        rows, queue = make(filled, max(filled, 1))
        found, expected = sharded(rows, queue, weights), replicated(rows, queue, weights)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sums_that_differ_between_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search takes the same passes on every device, even if its estimates do not have the same bits there."""
    moments, rows = top_k._moments, np.random.default_rng(0).normal(size=(3, 44)).astype(np.float32)

    def differing(sample: jax.Array, axis_name: str) -> tuple[jax.Array, jax.Array]:
        mean, spread = moments(sample, axis_name)
        return mean + 0.3 * jax.lax.axis_index(axis_name).astype(jnp.float32), spread

    monkeypatch.setattr(top_k, '_moments', differing)
    columns = PartitionSpec(None, AXIS)
    found = on_devices(4, lambda x: top_k.largest(x, 9, AXIS), columns, columns)(rows)
    np.testing.assert_array_equal(found, rows >= np.sort(rows)[:, -9:-8])


@pytest.mark.parametrize('devices', [1, 4])
def test_ring_buffer(devices: int) -> None:
    """Writes past the end of the queue and of one device's slots, and more keys than slots; checks age and validity."""

    def push(axis_name: str | None, queue: Queue, keys: jax.Array, step: jax.Array) -> Any:
        ids = jnp.arange(keys.shape[0], dtype=jnp.int32)
        queue = enqueue(queue, keys, ids, ids % 3, step, axis_name)
        return queue, valid(queue, axis_name), mean_age(queue, step, axis_name)

    replicated = jax.jit(partial(push, None))
    sharded = on_devices(devices, partial(push, AXIS), (QUEUE, WHOLE, WHOLE), (QUEUE, SLOTS, WHOLE))
    expected = found = empty_queue(K, D)
    for step, count in enumerate((5, 20, 30, 48, 1, 61)):
        keys = jax.random.normal(jax.random.key(step), (count, D))
        results = sharded(found, keys, jnp.int32(step)), replicated(expected, keys, jnp.int32(step))
        chex.assert_trees_all_equal(*results)
        found, expected = results[0][0], results[1][0]
        assert found.keys.sharding.shard_shape(found.keys.shape) == (K // devices, D)


def test_checkpoints_and_hash(tmp_path: Path) -> None:
    """A checkpoint of four devices has the same slots when two, three or one device read it."""
    config = full_recipe(48, queue__sharded=True, queue__init='noise')
    method = image_method(config, total_steps=1, steps_per_epoch=1, num_devices=4)
    state, specs = create_train_state(method), state_specs(method)
    state = state.replace(queue=state.queue.replace(enqueued_at=jnp.arange(48, dtype=jnp.int32)))
    meshes = [Mesh(np.array(jax.devices()[:devices]), (AXIS,)) for devices in (4, 2, 3, 1)]
    saved = place(state, meshes[0], specs)
    checkpoints = Checkpoints(epath.Path(tmp_path))
    checkpoints.save(1, saved, {}, None)
    for mesh in meshes:
        for lies in (specs, REPLICATED):
            restored, _ = checkpoints.restore(1, state, mesh, lies)
            held = 48 if lies == REPLICATED else 48 // mesh.size
            assert [shard.data.shape for shard in restored.queue.keys.addressable_shards] == [(held, 8)] * mesh.size
            chex.assert_trees_all_equal(restored, state)
            assert state_sha256(restored) == state_sha256(state)
    checkpoints.close()


@pytest.mark.parametrize(
    ('selector', 'key_term', 'mapper', 'devices'),
    [
        ('top_k', 'queue', 'shard_map', 4),
        ('threshold', 'batch', 'pmap', 2),
        *(
            pytest.param(selector, 'batch', mapper, devices, marks=EIGHT if devices == 8 else SLOW)
            for selector in ('all', 'top_k')
            for mapper in ('pmap', 'shard_map')
            for devices in (1, 2, 4, 8)
        ),
    ],
)
def test_steps(given_views, selector: str, key_term: str, mapper: str, devices: int) -> None:
    """Losses, metrics and states agree within 1e-6, and with the float64 reference; the queue wraps around."""
    fields = {'negatives__selector': selector, 'loss__key_weight': 0.5, 'loss__key_term': key_term}
    batches = make_batches()
    (states, metrics), (expected_states, expected_metrics) = (
        run(full_recipe(40, queue__sharded=sharded, **fields), batches, mapper=mapper, devices=devices)
        for sharded in (True, False)
    )
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, (states, metrics), (expected_states, expected_metrics))
    if selector != 'all':
        config = full_recipe(40, queue__sharded=True, **fields)
        assert_follows_reference(config, states, metrics, batches)
    chex.assert_trees_all_equal(states[1].queue, expected_states[1].queue)  # no sums were involved yet
