"""Keys that are encoded in batches of other images than their queries."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from configs import default
from dualcl_jax.method.accumulate import split
from dualcl_jax.method.shuffle_keys import destinations, exchange
from tests.support.steps import make_batches, run, tiny

AXIS = 'batch'


@pytest.mark.parametrize(
    ('batch', 'groups', 'parts'),
    [(16, 4, 1), (48, 4, 1), (8, 4, 1), (30, 5, 1), (24, 8, 1), (12, 1, 1), (64, 4, 4), (64, 4, 2), (48, 2, 4)],
)
def test_groups_are_spread_evenly(batch: int, groups: int, parts: int) -> None:
    """A group of keys contains rows of as many groups of queries as possible, equally many of each."""
    places = destinations(batch, groups, parts)
    assert sorted(places) == list(range(batch))
    rows = batch // groups
    np.testing.assert_array_equal(places % rows % parts, np.arange(batch) % rows % parts)  # the row stays in its part
    came_from = np.argsort(places) // rows
    for group in came_from.reshape(groups, rows):
        for part in split(group, parts):
            counts = np.bincount(part, minlength=groups)
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize('groups', [1, 2, 4, 8, 16])
@pytest.mark.parametrize('devices', [1, 2, 4])
def test_exchange_over_devices(devices: int, groups: int) -> None:
    """Exchanging there and back restores all rows, for groups within a device, one per device, or over several."""
    batch = 32
    places = destinations(batch, groups)
    values = np.random.default_rng(0).normal(size=(3, batch, 2)).astype(np.float32)
    mesh, rows = Mesh(np.array(jax.devices()[:devices]), (AXIS,)), PartitionSpec(None, AXIS)

    def there_and_back(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        moved = exchange(values, places, AXIS, axis=1)
        return moved, exchange(moved, np.argsort(places), AXIS, axis=1)

    mapped = jax.jit(jax.shard_map(there_and_back, mesh=mesh, in_specs=rows, out_specs=rows))
    moved, back = mapped(values)
    np.testing.assert_array_equal(moved[:, places], values)
    np.testing.assert_array_equal(back, values)


@pytest.mark.slow
def test_keys_see_other_statistics(given_views) -> None:
    """With four BN groups of two images, the keys of the first step depend on the shuffling, not on the devices."""

    def keys(devices: int, shuffled: bool) -> np.ndarray:
        fields = {'model__projection': 'mlp2_bn', 'model__head_width': 8, 'model__norm': 'split:4'}
        config = tiny(default.get_config(), 40, loss__shuffle_keys=shuffled, **fields)
        return run(config, make_batches()[:1], devices=devices)[0][1].queue.keys[:16]

    expected, plain = keys(1, True), keys(1, False)
    for devices in (2, 4):
        np.testing.assert_allclose(keys(devices, True), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - expected).max() > 0.1
