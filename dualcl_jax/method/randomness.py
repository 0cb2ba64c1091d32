"""Every random number comes from fold_in(fold_in(fold_in(seed, purpose), step), position in the global batch).

A key belongs to an example, never to a device, so 1, 4 or 256 devices draw the same views, and a run that resumes at a
step draws what it would have drawn.
"""

import jax

INIT, VIEWS, QUEUE, NEGATIVES, FINETUNE, PAIRS = 0, 1, 3, 4, 5, 6
"""The purposes: initial parameters, augmentation, initial noise of the queue, negatives drawn at random, crops for
fine-tuning, pairs of views for alignment."""


def key(seed: int, purpose: int) -> jax.Array:
    """The key of a purpose that is used once."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def step_key(seed: int, purpose: int, step: jax.Array) -> jax.Array:
    """The key of one step."""
    return jax.random.fold_in(key(seed, purpose), step)


def example_keys(seed: int, purpose: int, step: jax.Array, positions: jax.Array) -> jax.Array:
    """[b] keys, one for each position [b] int32 in the global batch."""
    return jax.vmap(lambda position: jax.random.fold_in(step_key(seed, purpose, step), position))(positions)
