"""Random keys. Each is fold_in(fold_in(fold_in(seed, purpose), step), position in the global batch).

A key belongs to an example, never to a device. So 1, 4 or 256 devices draw the same views, and a run that resumes at a
step draws the same numbers as a run without interruption. This holds for threefry, which is used whatever
`jax_default_prng_impl` says: the `rbg` generators do not separate the keys of a mapped batch.
"""

import jax

GENERATOR = 'threefry2x32'
INIT, VIEWS, QUEUE, NEGATIVES, FINETUNE, PAIRS = 0, 1, 3, 4, 5, 6
"""The purposes: initial parameters, augmentation, initial noise of the queue, randomly drawn negatives, crops for
fine-tuning, and pairs of views for alignment."""


def root(seed: int) -> jax.Array:
    """The key of a seed."""
    return jax.random.key(seed, impl=GENERATOR)


def from_data(data: jax.Array) -> jax.Array:
    """The keys [...] with the data uint32 [..., 2]: the inverse of `jax.random.key_data`."""
    return jax.random.wrap_key_data(data, impl=GENERATOR)


def key(seed: int, purpose: int) -> jax.Array:
    """The key of a purpose that needs one key in the whole run."""
    return jax.random.fold_in(root(seed), purpose)


def step_key(seed: int, purpose: int, step: jax.Array) -> jax.Array:
    """The key of a purpose in one step."""
    return jax.random.fold_in(key(seed, purpose), step)


def example_keys(seed: int, purpose: int, step: jax.Array, positions: jax.Array) -> jax.Array:
    """The keys [b] of a purpose in one step, one for each position [b] int32 in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key(seed, purpose, step), positions)
