"""The cases of the self-test: each compares a result of this machine with a stored float64 result."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dualcl_jax import losses
from dualcl_jax.data.loader import Batch
from dualcl_jax.method import randomness
from dualcl_jax.method.build import Method
from dualcl_jax.method.negatives import selectors
from dualcl_jax.method.negatives.queue import empty_queue, enqueue
from dualcl_jax.method.optim import build_optimizer, constant_momentum, learning_rate_schedule
from dualcl_jax.method.state import create_train_state
from dualcl_jax.method.views.images import PRESETS, VIEW_DRAWS, ImageViews, make_views
from dualcl_jax.models.encoder import Encoder
from dualcl_jax.models.norm import BatchNorm
from dualcl_jax.step import train_step
from dualcl_jax.system.devices import AXIS, PmapMapper, replicate, to_host

Arrays = dict[str, Any]
TEMPERATURE, K = 0.1, 5
SIDE, VIEW_STEP = 12, 5


def load_cases() -> Arrays:
    """Loads the stored inputs and the float64 results of `tests/reference/make_selftest_cases.py`."""
    with (
        resources.files('dualcl_jax.training').joinpath('selftest_cases.npz').open('rb') as file,
        np.load(file) as arrays,
    ):
        return {name: arrays[name] for name in arrays.files}


def _difference(found: object, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected value."""
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    return float(error / max(np.abs(expected).max(), 1e-12))


def loss_case(arrays: Arrays) -> float:
    """Dual-view InfoNCE with the hardest negatives of a queue that is not full."""
    return _difference(_loss(arrays, arrays['queries']), arrays['loss'])


def gradient_case(arrays: Arrays) -> float:
    """The gradient of that loss with respect to the queries."""
    return _difference(jax.jit(jax.grad(lambda queries: _loss(arrays, queries)))(arrays['queries']), arrays['gradient'])


def _loss(arrays: Arrays, queries: Any) -> Any:
    """Computes the loss with the functions that a step calls."""
    slots = jnp.arange(arrays['queue'].shape[0], dtype=jnp.int32)
    valid = slots < int(arrays['filled'])

    def contrast(anchors: Any, positives: Any) -> losses.Contrast:
        allowed = selectors.allowed_slots(valid, arrays['slot_ids'], arrays['ids'], mask_same_image=True)
        return losses.info_nce(
            anchors,
            positives,
            jnp.asarray(arrays['queue']),
            allowed,
            temperature=TEMPERATURE,
            select=losses.select_top_k,
            k=K,
        )

    return losses.dual_view_loss(jnp.asarray(queries), jnp.asarray(arrays['keys']), contrast)[0]


def selection_case(arrays: Arrays) -> float:
    """Selection among near ties: the share of anchors for which other slots are selected."""
    similarities = losses.cosine(arrays['tie_anchors'], arrays['tie_table'])
    chosen = np.sort(np.asarray(losses.select_top_k(similarities, K).slots), axis=1)
    return float((chosen != arrays['tie_slots']).any(axis=1).mean())


def queue_case(arrays: Arrays) -> float:
    """A ring buffer written past its end."""
    queue = empty_queue(7, arrays['pushed'].shape[2])
    for step, keys in enumerate(arrays['pushed']):
        ids = jnp.full((keys.shape[0],), step, jnp.int32)
        queue = enqueue(queue, jnp.asarray(keys), ids, ids, jnp.int32(step))
    return _difference(queue.keys, arrays['ring'])


def norm_case(arrays: Arrays, groups: int) -> float:
    """Batch normalisation over groups of the batch."""
    layer = BatchNorm(groups=groups)
    variables = layer.init(jax.random.key(0), arrays['features'], train=True)
    out, _ = layer.apply(variables, arrays['features'], train=True, mutable=['batch_stats'])
    return _difference(out, arrays[f'normalized_{groups}'])


def synchronized_norm_case(arrays: Arrays) -> float:
    """Batch normalisation over the batch of all devices."""
    features, devices = arrays['features'], _devices(arrays['features'].shape[0])
    layer = BatchNorm(span=len(devices), axis_name='i')
    variables = layer.init(jax.random.key(0), features, train=True)
    out = jax.pmap(
        lambda part: layer.apply(variables, part, train=True, mutable=['batch_stats'])[0],
        axis_name='i',
        devices=devices,
    )(features.reshape(len(devices), -1, *features.shape[1:]))
    return _difference(np.asarray(out).reshape(features.shape), arrays['normalized_1'])


def _devices(rows: int) -> list[Any]:
    """The largest number of this process's devices that divides `rows`."""
    devices = jax.local_devices()
    return devices[: max(count for count in range(1, len(devices) + 1) if rows % count == 0)]


def optimizer_case(arrays: Arrays) -> float:
    """Two SGD updates with decay and momentum from the stored gradient."""
    optimizer = build_optimizer(
        'sgd', lambda step: jnp.float32(0.1), momentum=0.9, weight_decay=1e-2, decay_norm_and_bias=True
    )
    params = jnp.asarray(arrays['theta'])
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jnp.asarray(arrays['theta_gradient']), state, params)
        params = params + updates
    return _difference(params, arrays['theta_after'])


def _view_keys(arrays: Arrays) -> Any:
    """The random keys of the stored images."""
    positions = jnp.arange(arrays['images'].shape[0], dtype=jnp.int32)
    return randomness.example_keys(0, randomness.VIEWS, jnp.int32(VIEW_STEP), positions)


def draws_case(arrays: Arrays) -> float:
    """The random numbers of both views, bit for bit: the share that differs."""

    def draw(view: int, key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, view), (VIEW_DRAWS,))

    keys = _view_keys(arrays)
    found = np.stack([jax.jit(jax.vmap(lambda key, view=view: draw(view, key)))(keys) for view in range(2)])
    return float((found != arrays['draws']).mean())


def _views(arrays: Arrays) -> Any:
    """Makes both views of the stored images with MoCo v3's recipe."""
    make = jax.jit(lambda keys, images: make_views(keys, images, PRESETS['moco_v3'], SIDE))
    return make(_view_keys(arrays), arrays['images'])


def views_case(arrays: Arrays) -> float:
    """Views with crop, colours, grayscale, blur, solarize and flip."""
    return _difference(_views(arrays), arrays['views'])


def step_case(arrays: Arrays) -> float:
    """Three whole steps over all devices: views, both encoders, loss, queue and optimizer.

    The encoder computes at the highest precision here. The other cases check that the loss requests it itself.
    """
    rows = np.arange(arrays['images'].shape[0], dtype=np.int32)
    steps = len(arrays['step_losses'])
    method = _method(steps)
    start = {name: jnp.asarray(arrays[f'step_start_{name}']) for name in _STEP_PARTS}
    mapper = PmapMapper(Mesh(np.asarray(_devices(len(rows))), (AXIS,)))
    params = _parameters(start)
    state = create_train_state(method)
    state = dataclasses.replace(state, params=params, momentum_params=jax.tree.map(jnp.copy, params))
    step_fn, state = mapper.map(partial(train_step, method)), mapper.put_state(replicate(state, mapper.mesh))
    found = []
    for _ in range(steps):
        state, metrics = step_fn(state, mapper.put_batch(Batch(arrays['images'], rows, rows, rows)))
        found.append(float(to_host(metrics)['train/loss'].squeeze()))
    end = to_host(mapper.global_state(state))
    errors = [_difference(found, arrays['step_losses']), _difference(end.queue.keys, arrays['step_queue'])]
    for part, tree in (('theta', end.params), ('xi', end.momentum_params)):
        errors += [
            _difference(tree[module][layer][leaf], arrays[f'step_{part}_{name}'])
            for name, (module, layer, leaf) in _STEP_PARTS.items()
        ]
    return max(errors)


_STEP_PARTS = {
    'conv1': ('backbone', 'conv1', 'kernel'),
    'conv2': ('backbone', 'conv2', 'kernel'),
    'weight': ('projection', 'fc', 'kernel'),
    'bias': ('projection', 'fc', 'bias'),
}


def _parameters(stored: Arrays) -> Any:
    """The encoder's parameters from the stored arrays."""
    return {
        'backbone': {name: {'kernel': stored[name]} for name in ('conv1', 'conv2')},
        'projection': {'fc': {'kernel': stored['weight'], 'bias': stored['bias']}},
    }


def _method(steps: int) -> Method:
    """The dual view with selected negatives, on a network of two convolutions."""
    rate = learning_rate_schedule(0.1, steps)
    sgd = build_optimizer('sgd', rate, momentum=0.9, weight_decay=5e-4, decay_norm_and_bias=True)
    return Method(
        encoder=Encoder('tiny', 'cifar', width=4, projection='linear', predictor='none', hidden=1, dim=8),
        views=ImageViews(SIDE, 3, (0.5,) * 3, (0.25,) * 3, PRESETS['moco_v3']),
        seed=0,
        symmetric=True,
        temperature=TEMPERATURE,
        hardness=0.0,
        loss_scale=1.0,
        key_weight=0.0,
        key_term='batch',
        shuffle_keys=False,
        select=losses.select_top_k,
        num_negatives=K,
        count_negatives=None,
        mask_same_image=True,
        queue_size=20,
        queue_init='empty',
        queue_axis=None,
        accumulate_steps=1,
        ema=constant_momentum(0.9, steps),
        learning_rate=rate,
        optimizer=sgd,
    )


def determinism_case(arrays: Arrays) -> float:
    """Runs the same programs twice and compares views and gradient bit for bit."""
    grad = jax.jit(jax.grad(lambda queries: _loss(arrays, queries)))
    first, second = ((np.asarray(_views(arrays)), np.asarray(grad(arrays['queries']))) for _ in range(2))
    return float(any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True)))


def collective_case(arrays: Arrays) -> float:
    """Sum and gather over all devices of this process."""
    devices = jax.local_device_count()
    rows = np.random.default_rng(0).integers(0, 9, (devices, 3)).astype(np.float32)
    found = jax.pmap(lambda x: (jax.lax.psum(x, 'i'), jax.lax.all_gather(x, 'i')), axis_name='i')(rows)
    return max(_difference(found[0][0], rows.sum(axis=0)), _difference(found[1][-1], rows))


def encoder_case(arrays: Arrays) -> float:
    """An encoder of 64 channels in float32 against float64; TensorFloat-32 or bfloat16 would differ by 1e-4 or more."""
    del arrays
    encoder = Encoder('tiny', 'cifar', width=64, projection='mlp', predictor='none', hidden=1, dim=64)
    images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(partial(encoder.init, train=False))(jax.random.key(0), images)
    found = jax.jit(partial(encoder.apply, train=False))(variables, images).projection
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables['params'])
    x = images.astype(np.float64)
    for name in ('conv1', 'conv2'):
        side, kernel = x.shape[1], params['backbone'][name]['kernel']
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [padded[:, i : i + side : 2, j : j + side : 2] @ kernel[i, j] for i in range(3) for j in range(3)]
        x = np.maximum(np.sum(taps, axis=0), 0)
    x = x.mean((1, 2))
    layers = list(params['projection'].values())
    for layer in layers[:-1]:
        x = np.maximum(x @ layer['kernel'] + layer['bias'], 0)
    return _difference(found, x @ layers[-1]['kernel'] + layers[-1]['bias'])


CASES: dict[str, tuple[Callable[[Arrays], float], float]] = {
    'loss': (loss_case, 1e-5),
    'gradient': (gradient_case, 1e-5),
    'selection': (selection_case, 0.0),
    'queue': (queue_case, 0.0),
    'batch statistics, one group': (lambda arrays: norm_case(arrays, 1), 1e-5),
    'batch statistics, four groups': (lambda arrays: norm_case(arrays, 4), 1e-5),
    'batch statistics, all devices': (synchronized_norm_case, 1e-5),
    'draws': (draws_case, 0.0),
    'views': (views_case, 1e-4),
    'optimizer': (optimizer_case, 1e-6),
    'encoder in float32': (encoder_case, 1e-5),
    'whole step': (step_case, 1e-4),
    'determinism': (determinism_case, 0.0),
    'collectives': (collective_case, 1e-6),
}
"""Each case returns an error; the number beside it is the largest error that passes."""


def run_cases(arrays: Arrays, names: Sequence[str] = tuple(CASES)) -> dict[str, tuple[float, bool]]:
    """Runs these cases. Returns the error of each, and whether it passes; NaN does not pass."""
    errors = {name: CASES[name][0](arrays) for name in names}
    return {name: (error, error <= CASES[name][1]) for name, error in errors.items()}
