"""The train state: one pytree of everything that a training step reads and writes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec

from dualcl_jax.method import randomness
from dualcl_jax.method.build import Method
from dualcl_jax.method.negatives.queue import Queue, empty_queue, noise_queue
from dualcl_jax.models.encoder import Variables


@struct.dataclass
class TrainState:
    """Everything that changes in training; the same on every device, except for the slots of a sharded queue.

    Attributes:
      step: [] int32, the number of steps taken.
      params: θ, the parameters of the online encoder, including the predictor.
      batch_stats: the running statistics of the online encoder.
      momentum_params: ξ, the parameters of the momentum encoder, which has no predictor.
      momentum_batch_stats: the running statistics of the momentum encoder, not averages of the online encoder's.
      opt_state: the state of the optimizer.
      queue: the memory queue; None if the negatives come from the batch.
    """

    step: jax.Array
    params: optax.Params
    batch_stats: Variables
    momentum_params: optax.Params
    momentum_batch_stats: Variables
    opt_state: optax.OptState
    queue: Queue | None

    @property
    def variables(self) -> Variables:
        """The online encoder's variables, for `Encoder.apply`."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def momentum_variables(self) -> Variables:
        """The momentum encoder's variables, for `Encoder.apply`."""
        return {'params': self.momentum_params, 'batch_stats': self.momentum_batch_stats}


def create_train_state(method: Method) -> TrainState:
    """Creates the state before the first step from `method.seed`. ξ equals θ; the queue is empty or full of noise."""
    key, view = randomness.key(method.seed, randomness.INIT), method.views.blank()
    variables = method.encoder.init(key, view, train=False, predict=True)
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    queue = None
    if method.queue_size and method.queue_init == 'noise':
        queue = noise_queue(randomness.key(method.seed, randomness.QUEUE), method.queue_size, method.dim)
    elif method.queue_size:
        queue = empty_queue(method.queue_size, method.dim)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        momentum_params=jax.tree.map(jnp.copy, _without_predictor(params)),
        momentum_batch_stats=jax.tree.map(jnp.copy, _without_predictor(batch_stats)),
        opt_state=method.optimizer.init(params),
        queue=queue,
    )


def state_specs(method: Method) -> Any:
    """The layout of a state on the devices: one `PartitionSpec` for the whole state, or one for each part."""
    whole: Any = PartitionSpec()
    if method.queue_axis is None:
        return whole
    return TrainState(whole, whole, whole, whole, whole, whole, queue_specs(method))


def queue_specs(method: Method) -> Any:
    """The layout of the queue of a state on the devices: a `PartitionSpec` for each of its arrays."""
    whole: Any = PartitionSpec()
    slots: Any = PartitionSpec(method.queue_axis)
    return Queue(keys=slots, ids=slots, labels=slots, enqueued_at=slots, cursor=whole, filled=whole)


def _without_predictor(variables: Variables) -> Variables:
    return {part: tree for part, tree in variables.items() if part != 'predictor'}
