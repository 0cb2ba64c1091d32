"""MoCo's recipe for CIFAR-10 with a noisy queue: of the keys that enter it, `SHARE` are random unit vectors.

A config file for `noisy_bank.py`: loading it replaces the function with which the training step writes the queue, so
the package needs no option that only an experiment uses.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dualcl_jax import step as training_step
from dualcl_jax.configs import cifar10_moco
from dualcl_jax.losses import normalize
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, enqueue

SHARE = 0.3


def get_config() -> ConfigDict:
    training_step.enqueue = enqueue_with_noise
    return cifar10_moco.get_config()


def enqueue_with_noise(
    queue: Queue,
    keys: jax.Array,
    ids: jax.Array,
    labels: jax.Array,
    step: jax.Array,
    axis_name: str | None = None,
    *,
    when: jax.Array | bool = True,
) -> Queue:
    """Replaces a random `SHARE` of the keys [n, D] by random unit vectors without an image, then writes the queue."""
    choose, draw = jax.random.split(jax.random.fold_in(jax.random.key(0), step))
    replaced = jax.random.bernoulli(choose, SHARE, ids.shape)
    keys = jnp.where(replaced[:, None], normalize(jax.random.normal(draw, keys.shape)), keys)
    ids, labels = (jnp.where(replaced, UNKNOWN, column) for column in (ids, labels))
    return enqueue(queue, keys, ids, labels, step, axis_name, when=when)
