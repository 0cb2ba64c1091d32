"""Training steps on given batches and several devices, and their comparison with `tests/reference/moco.py`."""

from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from configs import default
from dualcl_jax.data.loader import Batch
from dualcl_jax.method.state import create_train_state, state_specs
from dualcl_jax.step import train_step
from dualcl_jax.system.devices import AXIS, MAPPERS, gathered, place, to_host
from tests.reference import moco as reference
from tests.support.methods import image_method

BATCH, SIDE, DIM, IMAGES, STEPS, TOTAL_STEPS = 8, 8, 8, 20, 6, 8
NAMES = {
    'conv1': ('backbone', 'conv1', 'kernel'),
    'conv2': ('backbone', 'conv2', 'kernel'),
    'weight': ('projection', 'fc', 'kernel'),
    'bias': ('projection', 'fc', 'bias'),
}
CLASSES = np.arange(IMAGES) % 3


def make_batches():
    """Global batches whose images recur in later steps, and sometimes within one."""
    rng = np.random.default_rng(1)
    batches = []
    for _ in range(STEPS):
        ids = rng.integers(IMAGES, size=BATCH).astype(np.int32)
        views = rng.uniform(size=(BATCH, SIDE, SIDE, 6)).astype(np.float32)
        positions = np.arange(BATCH, dtype=np.int32)
        batches.append(Batch(views, ids, CLASSES[ids].astype(np.int32), positions))
    return batches


def tiny(config, queue_size, **fields):
    config.data.image_size = SIDE
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    config.model.update(name='tiny', width=4, dim=DIM, projection='linear', norm='local')
    config.queue.size = queue_size
    for field, value in fields.items():
        section, name = field.split('__')
        config[section][name] = value
    return config


def named(tree):
    """The encoder's parameters with the names of the reference."""
    return {name: np.array(tree[a][b][c]) for name, (a, b, c) in NAMES.items()}


def run(config, batches, *, mapper='pmap', devices=1, steps_per_epoch=1):
    """The host copy of the state before the first and after every step, and the metrics of every step."""
    mesh = Mesh(np.asarray(jax.devices()[:devices]), (AXIS,))
    method = image_method(config, total_steps=TOTAL_STEPS, steps_per_epoch=steps_per_epoch, num_devices=devices)
    specs = state_specs(method)
    mapper = MAPPERS[mapper](mesh, specs)
    step = mapper.map(partial(train_step, method))
    state = mapper.put_state(place(create_train_state(method), mesh, specs))

    def host_copy():
        return jax.tree.map(np.array, to_host(gathered(mapper.global_state(state))))

    states, all_metrics = [host_copy()], []
    for batch in batches:
        state, metrics = step(state, mapper.put_batch(batch))
        for path, leaf in jax.tree.leaves_with_path(mapper.global_state(state)):
            parts = [np.array(shard.data) for shard in leaf.addressable_shards]
            if leaf.is_fully_replicated:
                assert all(np.array_equal(part, parts[0], equal_nan=True) for part in parts), 'devices differ'
            else:
                assert config.queue.sharded
                assert 'queue' in jax.tree_util.keystr(path)
                assert [len(part) for part in parts] == [config.queue.size // devices] * devices
        states.append(host_copy())
        all_metrics.append({name: float(value.squeeze()) for name, value in to_host(metrics).items()})
    return states, all_metrics


def settings_of(config, steps_per_epoch=1):
    top_k = config.negatives.selector in ('top_k', 'threshold')
    return reference.Settings(
        temperature=config.loss.temperature,
        peak=config.optimizer.learning_rate,
        total_steps=TOTAL_STEPS,
        warmup_steps=int(config.optimizer.warmup_epochs * steps_per_epoch),
        sgd_momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
        decay_bias=config.optimizer.decay_norm_and_bias,
        ema=config.ema.momentum,
        ema_to_one=config.ema.schedule == 'cosine',
        symmetric=config.loss.symmetric,
        k=config.negatives.k if top_k else None,
        mask_same_image=config.negatives.mask_same_image,
        key_weight=config.loss.key_weight,
        key_term=config.loss.key_term,
    )


def standardized(config, images):
    return (np.float64(images) - np.array(config.data.mean)) / np.array(config.data.std)


def assert_near(actual, expected, what):
    """Asserts agreement within 1e-5 of the largest value."""
    error = np.abs(np.float64(actual) - expected).max()
    assert error <= 1e-5 * max(np.abs(expected).max(), 1e-30), f'{what}: off by {error:.3g}'


def assert_follows_reference(config, states, all_metrics, batches, steps_per_epoch=1):
    settings = settings_of(config, steps_per_epoch)
    start = states[0]
    moco = reference.Moco(settings, named(start.params), start.queue.keys, int(start.queue.filled))
    orders = 2 if settings.symmetric else 1
    for t, (batch, before, after, metrics) in enumerate(
        zip(batches, states[:-1], states[1:], all_metrics, strict=True)
    ):
        views = standardized(config, batch.examples[..., :3]), standardized(config, batch.examples[..., 3:])
        learning_rate, ema, cursor = moco.learning_rate(), moco.ema_momentum(), moco.cursor
        loss, gradient, keys = moco.train(*views, batch.ids.tolist())

        np.testing.assert_allclose(metrics['train/loss'], loss, rtol=1e-5, atol=0)
        np.testing.assert_allclose(metrics['train/loss_chance'], moco.chance, rtol=1e-6)
        np.testing.assert_allclose(metrics['train/learning_rate'], learning_rate, rtol=1e-6)
        np.testing.assert_allclose(metrics['train/ema_momentum'], ema, rtol=1e-6)
        length = np.sqrt(sum((value**2).sum() for value in gradient.values()))
        np.testing.assert_allclose(metrics['train/gradient_norm'], length, rtol=1e-5, atol=0)

        velocity = named(trace_of(after.opt_state))
        parameters_before, velocity_before = named(before.params), named(trace_of(before.opt_state))
        for name in NAMES:
            decay = settings.weight_decay if settings.decay_bias or name != 'bias' else 0.0
            by_change = (
                np.float64(velocity[name])
                - settings.sgd_momentum * np.float64(velocity_before[name])
                - decay * np.float64(parameters_before[name])
            )
            if loss > 0:
                assert_near(by_change, gradient[name], f'gradient of {name} at step {t}')
            assert_near(named(after.params)[name], moco.theta[name], f'θ, {name}, after step {t}')
            assert_near(named(after.momentum_params)[name], moco.xi[name], f'ξ, {name}, after step {t}')

        count = orders * BATCH
        kept = min(count, config.queue.size)
        written = (cursor + np.arange(count - kept, count)) % config.queue.size
        interleaved = np.stack(keys, axis=1).reshape(-1, DIM)
        assert_near(after.queue.keys[written], interleaved[-kept:], f'keys of step {t}')
        assert_near(after.queue.keys, moco.keys, f'queue after step {t}')
        assert after.queue.ids.tolist() == moco.ids
        assert after.queue.labels.tolist() == [-1 if i < 0 else CLASSES[i] for i in moco.ids]
        assert set(after.queue.enqueued_at[written].tolist()) == {t}
        assert (after.queue.cursor, after.queue.filled, after.step) == (moco.cursor, moco.filled, moco.step)


def trace_of(opt_state):
    """The momentum buffer: the only part of SGD's state with the structure of the parameters."""
    (trace,) = [part.trace for part in opt_state if hasattr(part, 'trace')]
    return trace


def full_recipe(queue_size, **fields):
    """Dual view with options that the base recipe lacks: 7 negatives, warm-up, rising momentum, decay of kernels."""
    fields = {
        'loss__symmetric': True,
        'negatives__selector': 'top_k',
        'negatives__k': 7,
        'negatives__mask_same_image': True,
        'queue__init': 'empty',
        'ema__momentum': 0.9,
        'ema__schedule': 'cosine',
        'optimizer__decay_norm_and_bias': False,
        'optimizer__weight_decay': 1e-3,
        'optimizer__warmup_epochs': 1.0,
        **fields,
    }
    return tiny(default.get_config(), queue_size, **fields)
