"""Options of the step: negatives from the batch, a predictor, parts of a batch, a schedule of k, a loss factor."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from dualcl_jax.models.encoder import build_encoder
from dualcl_jax.system.devices import MAPPERS
from tests.reference import moco as reference
from tests.support.methods import image_method
from tests.support.steps import TOTAL_STEPS, make_batches, named, run, standardized, tiny

PLAIN = {'optimizer__name': 'sgd', 'negatives__selector': 'all', 'negatives__mask_same_image': False}


def assert_close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('same_image', [False, True])
def test_negatives_from_the_batch(given_views, same_image):
    """2104.02057, Algorithm 1, in float64: the negatives are the keys of the other images in the same view order."""
    config = tiny(default.get_config(), 0, **PLAIN | {'negatives__mask_same_image': same_image})
    batch = make_batches()[0]
    states, [metrics] = run(config, [batch], devices=4)
    assert states[1].queue is None
    theta = {name: np.float64(value) for name, value in named(states[0].params).items()}
    views = [standardized(config, batch.examples[..., part]) for part in (slice(0, 3), slice(3, 6))]
    losses, gradient = [], dict.fromkeys(theta, 0.0)
    for query, key in (views, views[::-1]):
        queries, saved = reference.encode(theta, query)
        keys, _ = reference.encode(theta, key)
        grad = np.zeros_like(queries)
        for i, anchor in enumerate(queries):
            others = [j for j in range(8) if j != i and not (same_image and batch.ids[i] == batch.ids[j])]
            value, of_anchor, _, _ = reference.info_nce(anchor, keys[i], keys[others], config.loss.temperature)
            losses.append(value)
            grad[i] = of_anchor / 16
        for name, value in reference.encode_backward(theta, saved, grad).items():
            gradient[name] = gradient[name] + value
    np.testing.assert_allclose(metrics['train/loss'], np.mean(losses), rtol=1e-5)
    length = np.sqrt(sum((value**2).sum() for value in gradient.values()))
    np.testing.assert_allclose(metrics['train/gradient_norm'], length, rtol=1e-4)


@pytest.mark.parametrize('queue_size', [20, 0])
def test_negatives_weighted_by_hardness(given_views, queue_size):
    """The loss of 2010.04592 in float64, with negatives from the queue and from the batch."""
    fields = PLAIN | {'loss__hardness': 0.7, 'queue__init': 'noise'}
    config = tiny(default.get_config(), queue_size, **fields)
    batch = make_batches()[0]
    states, [metrics] = run(config, [batch], devices=4)
    theta = {name: np.float64(value) for name, value in named(states[0].params).items()}
    views = [standardized(config, batch.examples[..., part]) for part in (slice(0, 3), slice(3, 6))]
    losses, tau = [], config.loss.temperature
    for query, key in (views, views[::-1]):
        queries, keys = (reference.encode(theta, images)[0] for images in (query, key))
        for i, anchor in enumerate(queries):
            negatives = np.float64(states[0].queue.keys) if queue_size else np.delete(keys, i, axis=0)
            similarities = negatives @ anchor
            weights = np.exp(0.7 * similarities / tau)
            weighted = (weights / weights.mean() * np.exp(similarities / tau)).sum()
            losses.append(np.log1p(weighted / np.exp(anchor @ keys[i] / tau)))
    np.testing.assert_allclose(metrics['train/loss'], np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize('queue_size', [20, 0])
def test_parts_of_a_batch_equal_the_batch(given_views, queue_size):
    """This holds for an encoder without batch statistics on any number of devices, also with shuffled keys."""
    whole, _ = run(tiny(default.get_config(), queue_size, **PLAIN), make_batches()[:3], devices=1)
    fields = PLAIN | {'train__accumulate_steps': 2, 'loss__shuffle_keys': True}
    states, _ = run(tiny(default.get_config(), queue_size, **fields), make_batches()[:3], devices=2)
    assert_close(states[-1], whole[-1])


@pytest.mark.parametrize('same_image', [False, True])
def test_class_rates_agree_where_all_negatives_are_selected(given_views, same_image):
    """Both are over the allowed negatives: not the anchor's own key, nor other keys of its image if they are masked."""
    fields = PLAIN | {'negatives__mask_same_image': same_image}
    _, metrics = run(tiny(default.get_config(), 0, **fields), make_batches()[:3], devices=2)
    for step in metrics:
        assert 0 < step['train/same_class_rate'] < 1
        np.testing.assert_allclose(step['train/same_class_rate'], step['train/false_negative_rate'], rtol=1e-6)


def test_two_tau_scales_the_gradient_and_not_the_loss(given_views):
    config = tiny(default.get_config(), 20, **PLAIN | {'loss__temperature': 0.3, 'queue__init': 'noise'})
    _, [plain] = run(config, make_batches()[:1])
    config.loss.two_tau = True
    _, [scaled] = run(config, make_batches()[:1])
    assert scaled['train/loss'] == plain['train/loss']
    np.testing.assert_allclose(scaled['train/gradient_norm'], 0.6 * plain['train/gradient_norm'], rtol=1e-5)


def test_count_of_negatives_by_step(given_views):
    """k falls from the whole queue of 20 to 4, and the chance level follows it."""
    fields = {'negatives__k': 4, 'negatives__schedule': 'linear', 'negatives__selector': 'threshold'}
    fields |= {'queue__init': 'noise', 'negatives__mask_same_image': False}
    _, metrics = run(tiny(default.get_config(), 20, **fields), make_batches())
    expected = [round(20 - 16 * t / TOTAL_STEPS) for t in range(len(metrics))]
    assert [m['train/negatives'] for m in metrics] == expected
    np.testing.assert_allclose([m['train/loss_chance'] for m in metrics], np.log1p(expected), rtol=1e-6)
    config = tiny(default.get_config(), 20, **fields | {'negatives__schedule': 'cosine'})
    method = image_method(config, total_steps=TOTAL_STEPS, steps_per_epoch=1, num_devices=1)
    falling = [round(4 + 16 * (1 + np.cos(np.pi * t / TOTAL_STEPS)) / 2) for t in range(TOTAL_STEPS)]
    assert [method.count_negatives(jnp.int32(t)) for t in range(TOTAL_STEPS)] == falling


def test_clipped_gradients():
    fields = {'optimizer__clip': 0.5, 'optimizer__learning_rate': 0.1, 'optimizer__weight_decay': 0.0}
    config = tiny(default.get_config(), 20, **PLAIN | fields)
    method = image_method(config, total_steps=TOTAL_STEPS, steps_per_epoch=1, num_devices=1)
    for length, expected in ((7.0, 0.05), (0.3, 0.03)):
        gradient = {'kernel': jnp.full((1, 1), length)}
        update, _ = method.optimizer.update(gradient, method.optimizer.init(gradient), gradient)
        np.testing.assert_allclose(update['kernel'], -expected, rtol=1e-6)


def test_only_queries_pass_through_the_predictor(given_views):
    """The momentum encoder has no predictor, and gradients reach the predictor. Each view has its own statistics."""
    fields = {
        'model__projection': 'mlp2_bn',
        'model__predictor': 'mlp2',
        'model__head_width': 16,
        'model__norm': 'sync',
    }
    config, batches = tiny(default.get_config(), 0, **PLAIN | fields), make_batches()[:2]
    states, metrics = run(config, batches, devices=2)
    assert set(states[0].params) - set(states[0].momentum_params) == {'predictor'}
    assert set(states[0].momentum_batch_stats) == {'projection'}
    assert 'scale' not in states[0].params['projection'].get('bn_1', {})
    before, after = (state.params['predictor']['fc_1']['kernel'] for state in (states[0], states[-1]))
    assert np.abs(after - before).max() > 0
    assert all(np.isfinite(m['train/loss']) for m in metrics)

    def encoded(variables, images, **options):
        call = build_encoder(config.model).apply
        projection = call(variables, np.float32(images), train=True, mutable=['batch_stats'], **options)[0].projection
        return projection / np.linalg.norm(projection, axis=1, keepdims=True)

    views = [standardized(config, batches[0].examples[..., part]) for part in (slice(0, 3), slice(3, 6))]
    losses = []
    for query, key in (views, views[::-1]):
        queries = encoded(states[0].variables, query, predict=True)
        keys = encoded(states[0].momentum_variables, key)  # ξ is still θ
        similarities = np.float64(queries) @ np.float64(keys).T / config.loss.temperature
        losses.append(np.log(np.exp(similarities).sum(axis=1)) - np.diag(similarities))
    np.testing.assert_allclose(metrics[0]['train/loss'], np.mean(losses), rtol=1e-4)


def test_mappers_give_the_same_bits(given_views):
    """So parallel.mapper='auto' may stand for another one when a run resumes."""
    config = tiny(default.get_config(), 20, **PLAIN | {'train__accumulate_steps': 2, 'loss__shuffle_keys': True})
    first, *others = (run(config, make_batches()[:3], mapper=mapper, devices=2) for mapper in MAPPERS)
    for other in others:
        chex.assert_trees_all_equal(other, first)
