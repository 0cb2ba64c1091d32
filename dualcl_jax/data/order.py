"""The examples of each step: a pure function of (seed, step), the same on every process, with no state to save."""

import functools

import numpy as np

from dualcl_jax.system.errors import UserError


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """The number of whole batches in an epoch. The leftover examples, different ones in each epoch, are skipped.

    Raises:
      UserError: there are fewer examples than one batch takes.
    """
    if batch_size < 1:
        raise UserError(f'train.batch_size={batch_size}: must be at least 1')
    if num_examples < batch_size:
        raise UserError(
            f'train.batch_size={batch_size} is more than the {num_examples} training examples: '
            'lower it, or train on more (data.limit, data.test_fraction)'
        )
    return num_examples // batch_size


@functools.lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..N-1, int64 [N], read-only.

    Raises:
      UserError: `seed` is not in 0..2^64-1.
    """
    if not 0 <= seed < 2**64:
        raise UserError(f'seed={seed}: must lie in 0..2^64-1')
    key = np.array([seed, epoch], dtype=np.uint64)
    permutation = np.random.Generator(np.random.Philox(key=key)).permutation(num_examples)
    permutation.setflags(write=False)
    return permutation


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of the global batch at `step`, by position: int64 [B], read-only, each at most once an epoch.

    Raises:
      UserError: there are fewer examples than one batch takes.
    """
    epoch, batch = divmod(step, steps_per_epoch(num_examples, batch_size))
    return epoch_permutation(seed, epoch, num_examples)[batch * batch_size : (batch + 1) * batch_size]
