"""Compares every metric of a step with NumPy over the whole batch, whose rows lie on two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.losses import chance_level, info_nce
from dualcl_jax.method.contrast import Comparison
from dualcl_jax.method.diagnostics import measure
from dualcl_jax.method.negatives.queue import empty_queue
from dualcl_jax.method.negatives.queue_loss import Anchors, summarize
from dualcl_jax.method.negatives.selectors import SELECTORS

DEVICES, SHARE, VIEWS, D, K, FILLED, STEP = 2, 3, 2, 4, 10, 8, 7


def unit_rows(*shape, seed=0):
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_queue(labels=None):
    """A queue of 10 slots. Of its 8 filled slots, the first contains noise, the others keys of steps 1 to 6."""
    rng = np.random.default_rng(3)
    enqueued_at = np.full(K, -1)
    enqueued_at[1:FILLED] = rng.integers(1, STEP, size=FILLED - 1)
    if labels is None:
        labels = np.where(enqueued_at >= 0, rng.integers(3, size=K), -1)
    columns = {'keys': unit_rows(K, D, seed=4), 'labels': labels, 'enqueued_at': enqueued_at, 'filled': FILLED}
    return empty_queue(K, D).replace(
        **{name: jnp.asarray(v, jnp.float32 if name == 'keys' else jnp.int32) for name, v in columns.items()}
    )


def measured(queue, labels, selector='top_k', k=3, queries=None, allowed=None):
    """The metrics over two devices of `vmap`, and their inputs: queries and positives [V, N, D] and mask [N, K]."""
    rows = DEVICES * SHARE
    queries = unit_rows(DEVICES, VIEWS, SHARE, D) if queries is None else queries
    positives = unit_rows(DEVICES, VIEWS, SHARE, D, seed=1)
    if allowed is None:
        allowed = np.random.default_rng(2).random((rows, K)) < 0.8
        allowed[:, FILLED:] = False

    def one_device(queries, positives, allowed, labels):
        contrasts = [
            summarize(
                info_nce(q, p, queue.keys, allowed, temperature=0.2, select=SELECTORS[selector].select, k=k),
                labels,
                queue.labels,
            )
            for q, p in zip(queries, positives, strict=True)
        ]
        loss = jnp.stack([c.loss.mean() for c in contrasts]).mean()
        chance = chance_level(jnp.concatenate([c.negatives for c in contrasts]))
        places = jnp.arange(SHARE)
        anchors = Anchors(places, places, labels, None)
        compared = Comparison(loss, chance, queries, contrasts)
        return measure(compared, anchors, queue, lambda anchors: allowed[anchors.positions], jnp.int32(STEP))

    metrics = jax.jit(jax.vmap(one_device, axis_name='batch'))(
        *map(
            jnp.asarray, (queries, positives, allowed.reshape(DEVICES, SHARE, K), np.reshape(labels, (DEVICES, SHARE)))
        )
    )
    for name, value in metrics.items():
        assert value.shape == (DEVICES,), name
        assert value.dtype == jnp.float32, name
        np.testing.assert_array_equal(value, np.full(DEVICES, value[0]), err_msg=name)

    def merge(per_device):
        return np.float64(per_device).swapaxes(0, 1).reshape(VIEWS, rows, D)

    return {name: float(value[0]) for name, value in metrics.items()}, merge(queries), merge(positives), allowed


@pytest.mark.parametrize(('selector', 'k'), [('all', None), ('top_k', 3)])
def test_every_metric(selector, k):
    queue = make_queue()
    labels = np.array([0, 1, 2, -1, 1, 0], np.int32)
    metrics, queries, positives, allowed = measured(queue, labels, selector, k or 0)
    keys, classes = np.float64(queue.keys), np.asarray(queue.labels)

    losses, chances, similarities, selected = [], [], [], []
    for query_view, positive_view in zip(queries, positives, strict=True):
        for i, (query, positive) in enumerate(zip(query_view, positive_view, strict=True)):
            slots = sorted(np.flatnonzero(allowed[i]), key=lambda j, query=query: -keys[j] @ query)[:k]
            logits = np.array([query @ positive, *keys[slots] @ query]) / 0.2
            losses.append(np.logaddexp.reduce(logits) - logits[0])
            chances.append(np.log(1 + len(slots)))
            similarities.extend(keys[slots] @ query)
            selected.extend(labels[i] == classes[j] for j in slots if labels[i] >= 0 and classes[j] >= 0)
    in_queue = [labels[i] == classes[j] for i, j in np.argwhere(allowed) if labels[i] >= 0 and classes[j] >= 0]
    flat = queries.reshape(-1, D)
    expected = {
        'train/loss': np.mean(losses),
        'train/loss_chance': np.mean(chances),
        'train/positive_similarity': (queries * positives).sum(-1).mean(),
        'train/negative_similarity': np.mean(similarities),
        'train/false_negative_rate': np.mean(selected),
        'train/same_class_rate': np.mean(in_queue),
        'train/feature_std': np.sqrt(flat.var(axis=0).sum()),
        'train/effective_rank': 1 / np.square(np.linalg.eigvalsh(flat.T @ flat / len(flat))).sum(),
        'queue/fill': FILLED / K,
        'queue/age': (STEP - np.asarray(queue.enqueued_at)[1:FILLED]).mean(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert 0 < expected['train/same_class_rate'] < 1


def test_top_k_picks_more_of_the_anchors_class_where_classes_lie_together():
    """The keys of a class share a direction: all of the hardest and a quarter of all negatives are false negatives."""
    classes = np.array([0, 1, 2, 3, 0, 1, 2, 3, -1, -1])
    queue = make_queue(classes).replace(keys=jnp.asarray(np.eye(4, dtype=np.float32)[classes]))
    labels = np.array([0, 1, 2, 3, 0, 1], np.int32)
    queries = np.eye(4, dtype=np.float32)[labels].reshape(DEVICES, 1, SHARE, D).repeat(VIEWS, axis=1)
    allowed = np.broadcast_to(np.arange(K) < FILLED, (6, K)).copy()
    metrics, *_ = measured(queue, labels, 'top_k', 2, queries, allowed)
    assert metrics['train/false_negative_rate'] == 1.0
    assert metrics['train/same_class_rate'] == 0.25
    metrics, *_ = measured(queue, labels, 'all', 0, queries, allowed)
    assert metrics['train/false_negative_rate'] == metrics['train/same_class_rate'] == 0.25


@pytest.mark.parametrize('unknown', ['anchors', 'queue'])
def test_without_labels_the_class_rates_are_unknown(unknown):
    queue = make_queue(np.full(K, -1) if unknown == 'queue' else None)
    labels = np.full(6, -1 if unknown == 'anchors' else 0, np.int32)
    metrics, *_ = measured(queue, labels)
    silent = {name for name, value in metrics.items() if np.isnan(value)}
    assert silent == {'train/false_negative_rate', 'train/same_class_rate'}


def test_without_negatives():
    """In the first step, on an empty queue, the loss is 0, and metrics without a value are NaN."""
    metrics, *_ = measured(empty_queue(K, D), np.zeros(6, np.int32), allowed=np.zeros((6, K), bool))
    silent = {name for name, value in metrics.items() if np.isnan(value)}
    assert silent == {'train/negative_similarity', 'train/false_negative_rate', 'train/same_class_rate'}
    for name in ('train/loss', 'train/loss_chance', 'queue/fill', 'queue/age'):
        assert metrics[name] == 0.0


def test_collapse_and_spread():
    labels = np.zeros(6, np.int32)
    point = np.broadcast_to(unit_rows(D), (DEVICES, VIEWS, SHARE, D)).copy()
    metrics, *_ = measured(make_queue(), labels, queries=point)
    assert metrics['train/feature_std'] < 1e-3
    np.testing.assert_allclose(metrics['train/effective_rank'], 1, rtol=1e-5)
    axes = np.concatenate([np.eye(D), -np.eye(D), np.eye(D)[:2], -np.eye(D)[:2]]).astype(np.float32)
    metrics, *_ = measured(make_queue(), labels, queries=axes.reshape(DEVICES, VIEWS, SHARE, D))
    np.testing.assert_allclose(metrics['train/feature_std'], 1, rtol=1e-6)
    assert 3.5 < metrics['train/effective_rank'] < D
