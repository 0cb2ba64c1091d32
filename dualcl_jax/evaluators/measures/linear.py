"""Linear probes: multinomial logistic regression on frozen features, a whole sweep trained in one vmapped pass."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data.source import stratified
from dualcl_jax.method.randomness import root

MOMENTUM = 0.9
PREDICT_ROWS, PREDICT_BYTES = 8192, 2**29
"""The most examples whose classes are predicted at a time, and the most memory for their scores."""


class Probes(NamedTuple):
    """G linear classifiers of features standardised by `mean` and `std`, both [F].

    Attributes:
      weights: [G, F, C] float32.
      biases: [G, C] float32.
      mean, std: of the training features.
    """

    weights: jax.Array
    biases: jax.Array
    mean: NDArray
    std: NDArray


class Choice(NamedTuple):
    """The probe of a sweep that is best on the validation examples, trained again on all examples.

    Attributes:
      probe: the probe, with G = 1.
      learning_rate, weight_decay: those of the probe.
      validation_top1: accuracy in [0, 1] of the probe trained without the validation examples.
    """

    probe: Probes
    learning_rate: float
    weight_decay: float
    validation_top1: float


def train_probes(
    features: NDArray,
    labels: NDArray,
    num_classes: int,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Probes:
    """Trains G classifiers from zero on the same batches, by SGD with momentum 0.9 and a cosine learning rate.

    Each minimises mean cross-entropy + weight_decay / 2 · ‖weights‖²; biases are not decayed. The learning rate decays
    to 0. Features are standardised per dimension first, so that a learning rate means the same for every encoder. In
    each epoch, the examples beyond the last whole batch are left out, different ones each time.

    Args:
      features: [N, F].
      labels: [N] integers in [0, num_classes).
      num_classes: C.
      learning_rates, weight_decays: those of the classifiers, [G] each.
      epochs: passes over the features.
      batch_size: clamped to N.
      seed: seed of the order.
      advance: called after every epoch.
    """
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std > 1e-6 * np.max(std), std, np.float32(1))  # a constant dimension carries no information
    inputs, targets = jnp.asarray((features - mean) / std), jnp.asarray(labels, jnp.int32)
    group = len(learning_rates)
    params = (jnp.zeros((group, features.shape[1], num_classes)), jnp.zeros((group, num_classes)))
    state = params, jax.tree.map(jnp.zeros_like, params)
    rates, decays = (jnp.asarray(values, jnp.float32) for values in (learning_rates, weight_decays))
    steps = functools.partial(_epoch, batch_size=min(batch_size, len(features)))
    for epoch in range(epochs):
        state = steps(state, inputs, targets, rates, decays, root(seed), jnp.int32(epoch), jnp.int32(epochs))
        jax.block_until_ready(state)
        advance()
    return Probes(*state[0], mean, std)


@functools.partial(jax.jit, static_argnames='batch_size', donate_argnums=0)
def _epoch(
    state: tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    features: jax.Array,
    labels: jax.Array,
    rates: jax.Array,
    decays: jax.Array,
    key: jax.Array,
    epoch: jax.Array,
    epochs: jax.Array,
    *,
    batch_size: int,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """One pass over [N, F] features in a random order, for all classifiers at once."""
    steps = features.shape[0] // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, epoch), features.shape[0])[: steps * batch_size]

    def loss(params: tuple[jax.Array, jax.Array], decay: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        weight, bias = params
        scores = jax.nn.log_softmax(jnp.matmul(x, weight, precision=jax.lax.Precision.HIGHEST) + bias[None])
        cross_entropy = -jnp.take_along_axis(scores, y[:, None], axis=1).mean()
        return cross_entropy + 0.5 * decay * jnp.sum(jnp.square(weight))

    gradients = jax.vmap(jax.grad(loss), (0, 0, None, None))

    def step(state: tuple, batch: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        index, rows = batch
        params, velocity = state
        progress = (epoch * steps + index).astype(jnp.float32) / (epochs * steps).astype(jnp.float32)
        rate = rates * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        gradient = gradients(params, decays, features[rows], labels[rows])
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v: p - rate.reshape(-1, *(1,) * (p.ndim - 1)) * v, params, velocity)
        return (params, velocity), None

    batches = jnp.arange(steps, dtype=jnp.int32), order.reshape(steps, batch_size)
    return jax.lax.scan(step, state, batches)[0]


def predict(probes: Probes, features: NDArray) -> NDArray[np.int32]:
    """The class with the largest score for each of N features by each of G probes, [G, N] int32; on ties the lower."""
    rows = max(1, min(PREDICT_ROWS, PREDICT_BYTES // (4 * probes.biases.size)))
    parts = [
        np.asarray(_predict(probes.weights, probes.biases, (features[start : start + rows] - probes.mean) / probes.std))
        for start in range(0, len(features), rows)
    ]
    return np.concatenate(parts, axis=1)


@jax.jit
def _predict(weights: jax.Array, biases: jax.Array, inputs: jax.Array) -> jax.Array:
    scores = jnp.einsum('nf,gfc->gnc', inputs, weights, precision=jax.lax.Precision.HIGHEST) + biases[:, None]
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def choose_probe(
    features: NDArray,
    labels: NDArray,
    num_classes: int,
    *,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    validation: float,
    epochs: int,
    batch_size: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Choice:
    """Trains every pair of learning rate and weight decay, and trains the best on held-out examples again on all.

    Among pairs that are equal on the validation examples, the first is chosen: the smaller rate and decay, if they are
    given in ascending order.

    Args:
      features, labels, num_classes, epochs, batch_size, seed: see `train_probes`, with N at least 2; the seed also
        determines which examples are held out.
      learning_rates, weight_decays: all combinations are trained.
      validation: share of the examples held out, at least one example and at most all but one; they are drawn at
        random, or by class if that would hold out all examples of a class.
      advance: called 2 · epochs times.
    """
    order = np.random.default_rng(seed).permutation(len(features))
    held_out = min(max(1, round(validation * len(features))), len(features) - 1)
    if len(np.unique(labels[order[held_out:]])) < len(np.unique(labels)):
        order = stratified(order, labels, held_out)
    fit, check = order[held_out:], order[:held_out]
    train = functools.partial(
        train_probes, num_classes=num_classes, epochs=epochs, batch_size=batch_size, seed=seed, advance=advance
    )
    pairs = [(rate, decay) for rate in learning_rates for decay in weight_decays]
    rates, decays = zip(*pairs, strict=True)
    sweep = train(features[fit], labels[fit], learning_rates=rates, weight_decays=decays)
    accuracies = (predict(sweep, features[check]) == labels[check][None]).mean(axis=1)
    best = int(np.argmax(accuracies))
    probe = train(features, labels, learning_rates=rates[best : best + 1], weight_decays=decays[best : best + 1])
    return Choice(probe, rates[best], decays[best], float(accuracies[best]))
