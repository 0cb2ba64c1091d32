"""A batch that is not finite changes only the counters: the rest of the state is unchanged, bit for bit."""

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest

from configs import default
from dualcl_jax.step import all_finite
from tests.support.steps import make_batches, run, tiny


def spoiled(batch, value):
    views = np.array(batch.examples)
    views[5, 3, 3, 1] = value
    return batch._replace(examples=views)


@pytest.mark.parametrize(
    ('optimizer', 'mapper', 'devices', 'value'), [('sgd', 'pmap', 4, np.nan), ('adamw', 'shard_map', 2, np.inf)]
)
def test_only_counters_change(given_views, optimizer, mapper, devices, value) -> None:
    config = tiny(default.get_config(), 20, optimizer__name=optimizer)
    first, second, third = make_batches()[:3]
    states, metrics = run(config, [first, spoiled(second, value), third], mapper=mapper, devices=devices)
    assert [m['train/finite'] for m in metrics] == [1, 0, 1]
    _, before, after, last = states
    assert after.step == before.step + 1 == 2
    held = dataclasses.replace(after, step=before.step, opt_state=optax.tree.set(after.opt_state, count=np.int32(1)))
    chex.assert_trees_all_equal(held, before)
    assert metrics[2]['train/learning_rate'] != metrics[1]['train/learning_rate']
    assert all_finite(last)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(last.params), jax.tree.leaves(after.params), strict=True))


def test_adamw_after_a_skipped_batch(given_views) -> None:
    """Its first update is as large as the learning rate: the moments count the gradients that they hold."""
    config = tiny(default.get_config(), 20, optimizer__name='adamw', optimizer__weight_decay=0.0, queue__init='noise')
    first, second = make_batches()[:2]
    states, metrics = run(config, [spoiled(first, np.nan), second])
    updates = jax.tree.map(np.subtract, states[2].params, states[1].params)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(updates))
    assert largest == pytest.approx(metrics[1]['train/learning_rate'], rel=1e-3)
    counts = {path[-1].tuple_name: int(n) for path, n in optax.tree.get_all_with_path(states[2].opt_state, 'count')}
    assert counts == {'ScaleByAdamState': 1, 'ScaleByScheduleState': 2}


def test_update_that_is_not_finite(given_views) -> None:
    """Loss and gradient are finite, but the new parameters would not be."""
    config = tiny(default.get_config(), 20, optimizer__learning_rate=3e38, optimizer__momentum=0.0)
    config.optimizer.weight_decay = 1e3
    states, [metrics] = run(config, make_batches()[:1])
    assert np.isfinite(metrics['train/loss'])
    assert np.isfinite(metrics['train/gradient_norm'])
    assert not metrics['train/finite']
    chex.assert_trees_all_equal(states[1].params, states[0].params)
