"""Compares the gallery of negatives and the losses of images with their definitions in float64 NumPy."""

import jax
import numpy as np
import pytest

from dualcl_jax.method import randomness
from dualcl_jax.reports import hardness
from dualcl_jax.reports.hardness import hardest_negatives, image_losses, negatives_of, softmax_shares
from tests.support.random_run import STEP, random_run, reported, subject_of

TINY = 'model.name=tiny'


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def embed(run, variables, pixels):
    """Unit projections in evaluation mode, with the predictor if there is one."""
    predict = 'predictor' in variables['params']
    images = run.method.views.standardize(np.asarray(pixels, np.float32))
    return unit(run.method.encoder.apply(variables, images, train=False, predict=predict).projection)


def gallery(run, k, images=(3, 8, 200), shown=5):
    train, images = run.splits.train, np.array(images)
    queue = negatives_of(run.method, run.state, train, batch_size=32)
    return queue, hardest_negatives(run.method, run.state, train, images, queue, k, shown)


@pytest.mark.parametrize('fields', [(TINY,), (TINY, 'model.projection=mlp2_bn', 'model.predictor=mlp2')])
def test_the_hardest_negatives_are_the_most_similar_allowed_keys(tmp_path, fields):
    """The queue is half full; slots with an anchor's own image are not its negatives."""
    run = subject_of(random_run(tmp_path, *fields))
    train, queue = run.splits.train, run.state.queue
    images = np.array([queue.ids[4], 8, 200])
    _, found = gallery(run, 10, images)
    anchors = embed(run, run.state.variables, train.examples(images) / 255.0)
    for anchor, row, image in zip(found, anchors, images, strict=True):
        slots = np.flatnonzero((np.arange(queue.size) < queue.filled) & (queue.ids != image))
        cosines = queue.keys[slots].astype(np.float64) @ row
        order = slots[np.argsort(-cosines)]
        assert (anchor.image, anchor.label) == (image, train.labels[image])
        assert (anchor.allowed, anchor.selected) == (len(slots), 10)
        assert [negative.image for negative in anchor.hardest] == queue.ids[order[:5]].tolist()
        assert [negative.label for negative in anchor.hardest] == queue.labels[order[:5]].tolist()
        assert [negative.age for negative in anchor.hardest] == (STEP - queue.enqueued_at[order[:5]]).tolist()
        np.testing.assert_allclose(
            [negative.similarity for negative in anchor.hardest], -np.sort(-cosines)[:5], atol=1e-5
        )
        assert anchor.same_class == pytest.approx((queue.labels[order[:10]] == anchor.label).mean())
        assert anchor.same_class_queue == pytest.approx((queue.labels[slots] == anchor.label).mean())
    assert found[0].allowed < queue.filled


@pytest.mark.parametrize('selector', ['all', 'threshold', 'ring', 'random', 'approx_max_k'])
def test_the_selector_is_that_of_the_run(tmp_path, selector):
    run = subject_of(random_run(tmp_path, TINY, f'negatives.selector={selector}', 'negatives.skip=3'))
    queue, (anchor, *_) = gallery(run, 6, shown=6)
    row = embed(run, run.state.variables, run.splits.train.examples(np.array([3])) / 255.0)[0]
    allowed = np.flatnonzero((np.arange(queue.size) < queue.filled) & (np.asarray(queue.ids) != 3))
    hardest = -np.sort(-(np.asarray(queue.keys, np.float64)[allowed] @ row))
    found = [negative.similarity for negative in anchor.hardest]
    assert anchor.selected == (len(allowed) if selector == 'all' else 6)
    if selector == 'random':
        assert set(np.round(found, 4)) < set(np.round(hardest, 4))
        assert not np.allclose(found, hardest[:6], atol=1e-4)
    else:
        np.testing.assert_allclose(found, hardest[3:9] if selector == 'ring' else hardest[:6], atol=1e-5)


def test_noise_is_named_as_such(tmp_path):
    run = subject_of(random_run(tmp_path, TINY))
    queue = run.state.queue
    queue = queue.replace(filled=np.int32(queue.size), keys=queue.keys[::-1])  # noise may be among the hardest
    found = hardest_negatives(run.method, run.state, run.splits.train, np.arange(4), queue, queue.size, queue.size)
    noise = [negative for anchor in found for negative in anchor.hardest if negative.image < 0]
    assert noise
    assert all((negative.label, negative.age) == (-1, -1) for negative in noise)


def test_without_a_queue_negatives_come_from_a_batch(tmp_path):
    run = subject_of(random_run(tmp_path, TINY, 'queue.size=0', 'negatives.selector=all'))
    queue, found = gallery(run, 16)
    keys = embed(run, run.state.momentum_variables, run.splits.train.examples(np.asarray(queue.ids)) / 255.0)
    np.testing.assert_allclose(queue.keys, keys, atol=1e-5)
    assert len(set(np.asarray(queue.ids).tolist())) == 32
    assert all(anchor.image not in [negative.image for negative in anchor.hardest] for anchor in found)


def test_without_labels_shares_are_unknown(tmp_path):
    run = subject_of(random_run(tmp_path, TINY, labels=False))
    _, found = gallery(run, 10)
    assert all(anchor.same_class is anchor.same_class_queue is None for anchor in found)


@pytest.mark.parametrize(('of_training', 'hardness'), [(False, 0), (True, 0), (True, 0.5)])
def test_losses_are_info_nce_of_two_views(tmp_path, of_training, hardness):
    """The loss is -log of the positive's share among the selected negatives, weighted as in training.

    Training images exclude their own keys.
    """
    run, samples = reported(random_run(tmp_path, TINY, f'loss.hardness={hardness}'))
    source = run.splits.train if of_training else samples.source
    queue, method, k = run.state.queue, run.method, 12
    images = np.append(queue.ids[:2], np.arange(10, 30)).astype(np.int64) if of_training else np.arange(22)
    losses = image_losses(method, run.state, source, images, queue, k, of_training=of_training)
    keys = randomness.example_keys(method.seed, randomness.VIEWS, np.int32(STEP), np.arange(22, dtype=np.int32))
    views = jax.jit(method.views.augment)(keys, source.examples(images))
    anchors = embed(run, run.state.variables, views[0])
    positives = embed(run, run.state.momentum_variables, views[1])
    valid = np.arange(queue.size) < queue.filled
    for loss, anchor, positive, image in zip(losses, anchors, positives, images, strict=True):
        allowed = valid & (queue.ids != image) if of_training else valid
        hardest = -np.sort(-(queue.keys[allowed].astype(np.float64) @ anchor))[:k]
        weights = np.exp(hardness * hardest / method.temperature)
        ratios = weights / weights.mean() * np.exp((hardest - anchor @ positive) / method.temperature)
        assert loss == pytest.approx(np.log1p(ratios.sum()), abs=2e-4)


def test_the_share_of_the_softmax_that_the_hardest_hold(tmp_path):
    """The shares are those of a query's allowed keys, in float64; the images do not fill a block."""
    run = subject_of(random_run(tmp_path, TINY))
    queue, method, train = run.state.queue, run.method, run.splits.train
    images, parts = np.append(queue.ids[:2], np.arange(10, 30)).astype(np.int64), (1, 3, 10**6)
    (found,) = softmax_shares(method, run.state, train, images, queue, parts, [0.3])
    keys = randomness.example_keys(method.seed, randomness.VIEWS, np.int32(STEP), np.arange(22, dtype=np.int32))
    views = jax.jit(method.views.augment)(keys, train.examples(images))
    expected = []
    for query, image in zip(embed(run, run.state.variables, views[0]), images, strict=True):
        allowed = (np.arange(queue.size) < queue.filled) & (queue.ids != image)
        weights = np.sort(np.exp(queue.keys[allowed].astype(np.float64) @ query / 0.3))[::-1]
        expected.append([weights[: len(weights) // 3].sum() / weights.sum(), weights[0] / weights.sum()])
    assert found[0] == pytest.approx(1)
    assert found[1:] == pytest.approx(np.mean(expected, axis=0), rel=1e-5)
    assert 1 / 3 < found[1] < 1


@pytest.mark.parametrize('selector', ['top_k', 'random'])
def test_few_anchors_at_a_time_for_a_long_queue(tmp_path, monkeypatch, selector):
    run = subject_of(random_run(tmp_path, TINY, f'negatives.selector={selector}'))
    method, state, train, queue = run.method, run.state, run.splits.train, run.state.queue

    def found():
        return (
            image_losses(method, state, train, np.arange(33), queue, 12, of_training=True),
            softmax_shares(method, state, train, np.arange(33), queue, (1, 4), [0.3]),
        )

    together = found()
    sizes, allow = [], hardness._allowed
    monkeypatch.setattr(hardness, 'BYTES', 4 * queue.size * 12)
    monkeypatch.setattr(hardness, '_allowed', lambda *given: sizes.append(len(given[3])) or allow(*given))
    for some, all_ in zip(found(), together, strict=True):
        np.testing.assert_allclose(some, all_, rtol=1e-5)
    assert sizes == [10] * 4 * 2


def test_the_share_is_unknown_where_no_image_has_a_negative(tmp_path):
    run = subject_of(random_run(tmp_path, TINY))
    empty = run.state.queue.replace(filled=np.int32(0))
    assert np.isnan(softmax_shares(run.method, run.state, run.splits.train, np.arange(3), empty, (2,), [0.1])).all()
