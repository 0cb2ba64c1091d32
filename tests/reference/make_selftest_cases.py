"""Writes dualcl_jax/training/selftest_cases.npz: inputs in float32, results in float64 NumPy by the papers' formulas.

    python -m tests.reference.make_selftest_cases dualcl_jax/training/selftest_cases.npz

It imports neither JAX nor the package. Views and steps are those of the tests' references, random numbers are those
of Threefry-2x32 (Salmon et al., SC 2011).
"""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.reference.images import ref_crop_box, ref_view
from tests.reference.moco import Moco, Settings

Arrays = dict[str, Any]
TEMPERATURE, K = 0.1, 5
IMAGES, HEIGHT, WIDTH, SIDE = 8, 24, 36, 12
STEPS, VIEW_STEP, CROP_DRAWS, VIEW_DRAWS = 3, 5, 22, 36
VIEWS = 1  # the purpose of `dualcl_jax.method.randomness`
MOCO_V3 = {  # 2104.02057, after 2006.07733
    'crop_scale': (0.2, 1.0),
    'crop_ratio': (3 / 4, 4 / 3),
    'jitter_probability': 0.8,
    'strengths': (0.4, 0.4, 0.2, 0.1),
    'grayscale': 0.2,
    'grayscale_first': False,
    'blur_sigma': (0.1, 2.0),
    'solarize_threshold': 0.5,
    'flip': 0.5,
}
SPECS = (
    SimpleNamespace(**MOCO_V3, blur_probability=1.0, solarize_probability=0.0),
    SimpleNamespace(**MOCO_V3, blur_probability=0.1, solarize_probability=0.2),
)
OPERATIONS = ('jitter_probability', 'grayscale', 'blur_probability', 'solarize_probability', 'flip')


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def contrast(rng: np.random.Generator) -> Arrays:
    """Loss and gradient of both view orders with a queue that is not full."""
    queries, keys = unit(rng.normal(size=(2, 8, 32))), unit(rng.normal(size=(2, 8, 32)))
    queue, filled = unit(rng.normal(size=(40, 32))), 33
    queue[filled:] = queries[0, :7]  # would enter through an unmasked slot
    ids, slot_ids = np.arange(8, dtype=np.int32), (np.arange(40) % 11).astype(np.int32)
    loss, gradient = 0.0, np.zeros((2, 8, 32))
    for v in range(2):
        for i in range(8):
            a, p = queries[v, i].astype(np.float64), keys[v, i].astype(np.float64)
            slots = [j for j in range(filled) if slot_ids[j] != ids[i]]
            slots = sorted(slots, key=lambda j: -float(queue[j].astype(np.float64) @ a))[:K]
            table = np.vstack([p, queue[slots].astype(np.float64)])
            weights = np.exp(table @ a / TEMPERATURE)
            shares = weights / weights.sum()
            loss -= np.log(shares[0]) / 16
            gradient[v, i] = (shares @ table - p) / TEMPERATURE / 16
    return {
        'queries': queries,
        'keys': keys,
        'queue': queue,
        'filled': np.int32(filled),
        'ids': ids,
        'slot_ids': slot_ids,
        'loss': np.float64(loss),
        'gradient': gradient,
    }


def ties(rng: np.random.Generator) -> Arrays:
    """Similarities that differ by a few millionths, which half-precision products cannot order."""
    anchors, base = unit(rng.normal(size=(16, 64))), unit(rng.normal(size=(1, 64)))
    table = unit(base + 1e-3 * rng.normal(size=(50, 64)))
    similarities = anchors.astype(np.float64) @ table.astype(np.float64).T
    order, ordered = np.argsort(-similarities, axis=1), np.sort(similarities, axis=1)[:, ::-1]
    clear = ordered[:, K - 1] - ordered[:, K] > 2e-6  # float32 can separate the last chosen from the first excluded
    return {'tie_anchors': anchors[clear], 'tie_table': table, 'tie_slots': np.sort(order[clear, :K], axis=1)}


def ring(rng: np.random.Generator) -> Arrays:
    """A queue of 7 slots into which 12 keys are written."""
    pushed = rng.normal(size=(3, 4, 6)).astype(np.float32)
    slots = np.zeros((7, 6))
    for n, row in enumerate(pushed.reshape(-1, 6)):
        slots[n % 7] = row
    return {'pushed': pushed, 'ring': slots}


def norms(rng: np.random.Generator) -> Arrays:
    """Batch normalisation over one and over four groups."""
    features = rng.normal(2, 3, size=(16, 3, 5)).astype(np.float32)
    arrays: Arrays = {'features': features}
    for groups in (1, 4):
        parts = np.float64(features).reshape(groups, -1, 5)
        whitened = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)
        arrays[f'normalized_{groups}'] = whitened.reshape(features.shape)
    return arrays


def sgd(rng: np.random.Generator) -> Arrays:
    """Two updates of SGD with decay and momentum."""
    theta, slope = rng.normal(size=(2, 9)).astype(np.float32)
    after, velocity = np.float64(theta), np.zeros(9)
    for _ in range(2):
        velocity = 0.9 * velocity + slope + 1e-2 * after
        after = after - 0.1 * velocity
    return {'theta': theta, 'theta_gradient': slope, 'theta_after': after}


def threefry(key: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32, 20 rounds, of counters uint32 [n] under a key uint32 [2]."""
    keys = [key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
    x, y = first + keys[0], second + keys[1]
    for part in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[part % 2]:
            x = x + y
            y = (y << np.uint32(bits) | y >> np.uint32(32 - bits)) ^ x
        x, y = x + keys[(part + 1) % 3], y + keys[(part + 2) % 3] + np.uint32(part + 1)
    return x, y


def uniform(path: tuple[int, ...]) -> np.ndarray:
    """float32 [VIEW_DRAWS] in [0, 1) of `fold_in(... fold_in(key(0), path[0]) ..., path[-1])`."""
    key, zero = np.zeros(2, np.uint32), np.zeros(1, np.uint32)
    for number in path:
        key = np.concatenate(threefry(key, zero, np.array([number], np.uint32)))
    counts = np.arange(VIEW_DRAWS, dtype=np.uint32)
    high, low = threefry(key, np.zeros_like(counts), counts)
    return ((high ^ low) >> np.uint32(9)).astype(np.float32) * np.float32(2**-23)


def parameters(draws: np.ndarray, spec: SimpleNamespace) -> SimpleNamespace:
    """Parameters for `ref_view` from the draws of a view; none may be so close to a boundary that float32 differs."""
    crop, jitter, rest = np.split(np.float64(draws), [CROP_DRAWS, CROP_DRAWS + 8])
    boxes = {
        ref_crop_box(crop + shift, HEIGHT, WIDTH, spec.crop_scale, spec.crop_ratio) for shift in (-2e-5, 0.0, 2e-5)
    }
    assert len(boxes) == 1, 'a crop that rounding decides: choose other images'
    lows = [1 - strength for strength in spec.strengths[:3]] + [-spec.strengths[3]]
    factors = [low + 2 * strength * draw for low, strength, draw in zip(lows, spec.strengths, jitter[:4], strict=True)]
    low, high = spec.blur_sigma
    return SimpleNamespace(
        crop=boxes.pop(),
        jitter=_Jitter(factors, np.argsort(jitter[4:])),
        sigma=low + (high - low) * rest[0],
        applied={name: rest[1 + i] < getattr(spec, name) for i, name in enumerate(OPERATIONS)},
    )


class _Jitter(list):
    """Four factors, and the order in which they are applied."""

    def __init__(self, factors: list[float], position: np.ndarray) -> None:
        super().__init__(factors)
        self.position = position


def make_views(images: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws float32 [2, n, VIEW_DRAWS] and views float64 [2, n, SIDE, SIDE, 3] of a step with seed 0."""
    draws = np.array([[uniform((VIEWS, step, place, view)) for place in range(len(images))] for view in range(2)])
    views = np.array(
        [
            [
                ref_view(image / 255, parameters(of_view, spec), spec, SIDE)
                for image, of_view in zip(images, rows, strict=True)
            ]
            for rows, spec in zip(draws, SPECS, strict=True)
        ]
    )
    return draws, views


def steps(rng: np.random.Generator) -> Arrays:
    """Views of a batch, and whole steps on it: views, both encoders, loss, queue, SGD."""
    coarse = rng.integers(0, 256, (IMAGES, HEIGHT // 6, WIDTH // 6, 3))
    images = coarse.repeat(6, axis=1).repeat(6, axis=2).astype(np.uint8)
    draws, views = make_views(images, VIEW_STEP)
    theta = {
        'conv1': rng.normal(0, np.sqrt(2 / 27), (3, 3, 3, 4)).astype(np.float32),
        'conv2': rng.normal(0, np.sqrt(2 / 36), (3, 3, 4, 8)).astype(np.float32),
        'weight': rng.normal(0, np.sqrt(1 / 8), (8, 8)).astype(np.float32),
        'bias': rng.normal(0, 0.1, 8).astype(np.float32),
    }
    settings = Settings(TEMPERATURE, 0.1, STEPS, ema=0.9, symmetric=True, k=K, mask_same_image=True)
    moco = Moco(settings, theta, np.zeros((20, 8)), filled=0)
    ids = np.arange(IMAGES, dtype=np.int32)
    losses = []
    for step in range(STEPS):
        first, second = ((views - 0.5) / 0.25 for views in make_views(images, step)[1])
        loss, _, _ = moco.train(first, second, ids.tolist())
        losses.append(loss)
    arrays = {
        'images': images,
        'draws': draws,
        'views': views,
        'step_losses': np.array(losses),
        'step_queue': moco.keys,
    }
    arrays |= {f'step_start_{name}': value for name, value in theta.items()}
    arrays |= {f'step_theta_{name}': value for name, value in moco.theta.items()}
    return arrays | {f'step_xi_{name}': value for name, value in moco.xi.items()}


def main(path: str) -> None:
    rng = np.random.default_rng(0)
    cases = contrast(rng) | ties(rng) | ring(rng) | norms(rng) | sgd(rng) | steps(rng)
    np.savez_compressed(path, **cases)


if __name__ == '__main__':
    main(sys.argv[1])
