"""Writes dualcl_jax/selftest_cases.npz: inputs in float32, results in float64 NumPy by the papers' formulas.

    python experiments/selftest_cases.py dualcl_jax/selftest_cases.npz

It imports neither JAX nor the package.
"""

import sys

import numpy as np

TEMPERATURE, K = 0.1, 5


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def main(path: str) -> None:
    rng = np.random.default_rng(0)
    queries, keys = unit(rng.normal(size=(2, 8, 32))), unit(rng.normal(size=(2, 8, 32)))
    queue = unit(rng.normal(size=(40, 32)))
    filled = 33
    queue[filled:] = queries[0, :7]  # what an unmasked slot would let in
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

    # Similarities a few millionths apart: half-precision products cannot order them.
    anchors = unit(rng.normal(size=(16, 64)))
    base = unit(rng.normal(size=(1, 64)))
    table = unit(base + 1e-3 * rng.normal(size=(50, 64)))
    order = np.argsort(-(anchors.astype(np.float64) @ table.astype(np.float64).T), axis=1)
    similarity = np.sort(anchors.astype(np.float64) @ table.astype(np.float64).T, axis=1)[:, ::-1]
    clear = similarity[:, K - 1] - similarity[:, K] > 2e-6  # float32 can tell the last chosen from the first left out
    pushed = rng.normal(size=(3, 4, 6)).astype(np.float32)
    ring = np.zeros((7, 6))
    for n, row in enumerate(pushed.reshape(-1, 6)):
        ring[n % 7] = row

    features = rng.normal(2, 3, size=(16, 3, 5)).astype(np.float32)
    normalized = {}
    for groups in (1, 4):
        parts = np.float64(features).reshape(groups, -1, 5)
        whitened = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)
        normalized[f'normalized_{groups}'] = whitened.reshape(features.shape)

    theta, slope = rng.normal(size=(2, 9)).astype(np.float32)
    after, velocity = np.float64(theta), 0.0
    for _ in range(2):
        velocity = 0.9 * velocity + slope + 1e-2 * after
        after = after - 0.1 * velocity
    np.savez_compressed(
        path,
        queries=queries,
        keys=keys,
        queue=queue,
        filled=np.int32(filled),
        ids=ids,
        slot_ids=slot_ids,
        loss=np.float64(loss),
        gradient=gradient,
        tie_anchors=anchors[clear],
        tie_table=table,
        tie_slots=np.sort(order[clear, :K], axis=1),
        pushed=pushed,
        ring=ring,
        theta=theta,
        theta_gradient=slope,
        theta_after=after,
        images=rng.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8),
        normalized_1=normalized['normalized_1'],
        normalized_4=normalized['normalized_4'],
        features=features,
    )


if __name__ == '__main__':
    main(sys.argv[1])
