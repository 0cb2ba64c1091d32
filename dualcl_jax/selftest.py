"""Checks this machine's accelerator against stored float64 cases: python -m dualcl_jax.selftest."""

import argparse
import sys
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dualcl_jax.errors import exits_cleanly

EXIT_FAILED = 1
Arrays = dict[str, Any]
TEMPERATURE, K = 0.1, 5


def load_cases() -> Arrays:
    """The stored inputs, and results of `experiments/selftest_cases.py` in float64."""
    with resources.files('dualcl_jax').joinpath('selftest_cases.npz').open('rb') as file, np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _difference(found: object, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest expected value."""
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    return float(error / max(np.abs(expected).max(), 1e-12))


def loss_case(arrays: Arrays) -> float:
    """Dual-view InfoNCE against the hardest negatives of a queue with an empty tail."""
    return _difference(_loss(arrays, arrays['queries']), arrays['loss'])


def gradient_case(arrays: Arrays) -> float:
    """Its gradient by the queries."""
    import jax

    return _difference(jax.jit(jax.grad(lambda queries: _loss(arrays, queries)))(arrays['queries']), arrays['gradient'])


def _loss(arrays: Arrays, queries: Any) -> Any:
    """The loss by the functions that a step calls."""
    import jax.numpy as jnp

    from dualcl_jax import losses, negatives

    slots = jnp.arange(arrays['queue'].shape[0], dtype=jnp.int32)
    valid = slots < int(arrays['filled'])

    def contrast(anchors: Any, positives: Any) -> losses.Contrast:
        allowed = negatives.allowed_slots(valid, arrays['slot_ids'], arrays['ids'], mask_same_image=True)
        return losses.info_nce(
            anchors,
            positives,
            jnp.asarray(arrays['queue']),
            allowed,
            temperature=TEMPERATURE,
            select=negatives.select_top_k,
            k=K,
        )

    return losses.dual_view_loss(jnp.asarray(queries), jnp.asarray(arrays['keys']), contrast)[0]


def selection_case(arrays: Arrays) -> float:
    """Which slots are chosen among near ties: the share of anchors whose set is another."""
    from dualcl_jax import losses, negatives

    similarities = losses.cosine(arrays['tie_anchors'], arrays['tie_table'])
    chosen = np.sort(np.asarray(negatives.select_top_k(similarities, K).slots), axis=1)
    return float((chosen != arrays['tie_slots']).any(axis=1).mean())


def queue_case(arrays: Arrays) -> float:
    """A ring buffer written past its end."""
    import jax.numpy as jnp

    from dualcl_jax.queue import empty_queue, enqueue

    queue = empty_queue(7, arrays['pushed'].shape[2])
    for step, keys in enumerate(arrays['pushed']):
        ids = jnp.full((keys.shape[0],), step, jnp.int32)
        queue = enqueue(queue, jnp.asarray(keys), ids, ids, jnp.int32(step))
    return _difference(queue.keys, arrays['ring'])


def norm_case(arrays: Arrays, groups: int) -> float:
    """Batch normalisation over groups of the batch."""
    import jax

    from dualcl_jax.models.norm import BatchNorm

    layer = BatchNorm(groups=groups)
    variables = layer.init(jax.random.key(0), arrays['features'], train=True)
    out, _ = layer.apply(variables, arrays['features'], train=True, mutable=['batch_stats'])
    return _difference(out, arrays[f'normalized_{groups}'])


def step_case(arrays: Arrays) -> float:
    """Momentum update, then SGD with decay and momentum from the stored gradient."""
    import jax.numpy as jnp

    from dualcl_jax.optim import build_optimizer

    optimizer = build_optimizer(
        'sgd', lambda step: jnp.float32(0.1), momentum=0.9, weight_decay=1e-2, decay_norm_and_bias=True
    )
    params, state = jnp.asarray(arrays['theta']), None
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jnp.asarray(arrays['theta_gradient']), state, params)
        params = params + updates
    return _difference(params, arrays['theta_after'])


def determinism_case(arrays: Arrays) -> float:
    """The same program twice: views, loss and gradient, bit for bit."""
    import jax
    import jax.numpy as jnp

    from dualcl_jax.views import PRESETS, make_views

    images = jnp.asarray(arrays['images'])
    rngs = jax.random.split(jax.random.key(0), images.shape[0])
    make = jax.jit(lambda rngs, images: make_views(rngs, images, PRESETS['moco_v2'], 8))
    grad = jax.jit(jax.grad(lambda queries: _loss(arrays, queries)))
    first, second = ((np.asarray(make(rngs, images)), np.asarray(grad(arrays['queries']))) for _ in range(2))
    return float(any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True)))


def collective_case(arrays: Arrays) -> float:
    """Sum and gather over all devices of this process."""
    import jax

    devices = jax.local_device_count()
    rows = np.random.default_rng(0).integers(0, 9, (devices, 3)).astype(np.float32)
    found = jax.pmap(lambda x: (jax.lax.psum(x, 'i'), jax.lax.all_gather(x, 'i')), axis_name='i')(rows)
    return max(_difference(found[0][0], rows.sum(axis=0)), _difference(found[1][-1], rows))


CASES: dict[str, tuple[Callable[[Arrays], float], float]] = {
    'loss': (loss_case, 1e-5),
    'gradient': (gradient_case, 1e-5),
    'selection': (selection_case, 0.0),
    'queue': (queue_case, 0.0),
    'batch statistics, one group': (lambda arrays: norm_case(arrays, 1), 1e-5),
    'batch statistics, four groups': (lambda arrays: norm_case(arrays, 4), 1e-5),
    'optimizer step': (step_case, 1e-6),
    'determinism': (determinism_case, 0.0),
    'collectives': (collective_case, 1e-6),
}
"""Each case gives an error; beside it the most that passes."""


def run_cases(arrays: Arrays) -> dict[str, tuple[float, bool]]:
    """The error of each case, and whether it passes; NaN does not."""
    errors = {name: case(arrays) for name, (case, _) in CASES.items()}
    return {name: (error, error <= CASES[name][1]) for name, error in errors.items()}


@exits_cleanly
def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m dualcl_jax.selftest', description=__doc__)
    parser.parse_args()
    from dualcl_jax import runtime

    runtime.start(None, None, None)
    import jax

    results = run_cases(load_cases())
    table = Table('case', 'error', 'allowed', 'result', title=f'{jax.device_count()} × {jax.devices()[0].device_kind}')
    for name, (error, passed) in results.items():
        table.add_row(name, f'{error:.2g}', f'{CASES[name][1]:.0e}', 'pass' if passed else 'FAIL')
    Console().print(table)
    failed = [name for name, (_, passed) in results.items() if not passed]
    if failed:
        print(f'error: wrong on this machine: {", ".join(failed)}; check its drivers and jax version', file=sys.stderr)
    return EXIT_FAILED if failed else 0


if __name__ == '__main__':
    sys.exit(main())
