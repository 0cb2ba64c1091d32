"""The length of a run in steps."""

from typing import NamedTuple

from ml_collections import ConfigDict

from dualcl_jax.data.order import steps_per_epoch


class Length(NamedTuple):
    """The number of whole batches in an epoch and in the run."""

    steps_per_epoch: int
    total_steps: int


def run_length(config: ConfigDict, num_examples: int) -> Length:
    """Computes the length of a run on `num_examples` training examples, from `train.steps` if set, else `train.epochs`.

    Raises:
      UserError: there are fewer examples than one batch needs.
    """
    epoch = steps_per_epoch(num_examples, config.train.batch_size)
    return Length(epoch, config.train.steps or config.train.epochs * epoch)
