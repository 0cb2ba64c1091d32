"""The method as one frozen value: the choices of a config, resolved to functions and numbers."""

import dataclasses
from typing import Any

import optax

from dualcl_jax.losses import Selector
from dualcl_jax.method.negatives.selectors import build_selector, resolve_k
from dualcl_jax.method.optim import (
    LEARNING_RATE_SCHEDULES,
    MOMENTUM_SCHEDULES,
    Schedule,
    build_optimizer,
    count_schedule,
    peak_learning_rate,
)
from dualcl_jax.method.views import Views
from dualcl_jax.models.encoder import Encoder, build_encoder
from dualcl_jax.models.norm import norm_layout
from dualcl_jax.system.devices import AXIS


@dataclasses.dataclass(frozen=True)
class Method:
    """The static inputs of a training step.

    Attributes:
      encoder: the Flax module of the query encoder and the key encoder.
      views: makes the views of an example for the encoders.
      seed: the seed of all randomness.
      symmetric: whether both views act as query and key; otherwise view 1 is the query and view 2 the key.
      temperature: τ.
      hardness: β, how strongly harder negatives are weighted; at 0 all negatives have the same weight.
      loss_scale: the factor of the loss that is differentiated; the logged loss has no factor.
      key_weight: w, the share of the term anchored at the key.
      key_term: the negatives of that term: 'batch' (the other queries of the global batch) or 'queue'.
      shuffle_keys: whether keys are encoded in other BN groups and on other devices than their queries.
      select: the selector of negatives.
      num_negatives: k, how many negatives it selects; with a schedule, at the end of the run.
      count_negatives: the schedule of k; None if k is constant.
      mask_same_image: whether older keys of the anchor's own image are excluded from its negatives.
      queue_size: K, the number of keys in the queue; 0 if the negatives come from the batch.
      queue_init: the initial content of the queue, 'empty' or 'noise'.
      queue_axis: the axis of devices that the queue is sharded over; None if every device holds all of it.
      accumulate_steps: the number of parts in which the batch is processed; their gradients are averaged into one step.
      ema: the schedule of the momentum encoder's momentum.
      learning_rate: the schedule of the learning rate.
      optimizer: the optimizer, which follows that schedule.
    """

    encoder: Encoder
    views: Views
    seed: int
    symmetric: bool
    temperature: float
    hardness: float
    loss_scale: float
    key_weight: float
    key_term: str
    shuffle_keys: bool
    select: Selector
    num_negatives: int
    count_negatives: Schedule | None
    mask_same_image: bool
    queue_size: int
    queue_init: str
    queue_axis: str | None
    accumulate_steps: int
    ema: Schedule
    learning_rate: Schedule
    optimizer: optax.GradientTransformation

    @property
    def dim(self) -> int:
        """D, the length of queries and keys."""
        return self.encoder.dim


def build_method(config: Any, views: Views, *, total_steps: int, steps_per_epoch: int, num_devices: int) -> Method:
    """Builds the method that a config describes.

    Args:
      config: a validated and resolved config (`dualcl_jax.method.resolve`); `configs/default.py` documents its fields.
      views: the views of its examples, from the table `dualcl_jax.method.views.VIEWS`.
      total_steps: the length of the run, which the schedules follow.
      steps_per_epoch: the length of an epoch, which the warm-up follows.
      num_devices: the number of devices that share the global batch.
    """
    groups, span = norm_layout(config.model.norm, num_devices)
    optimizer = config.optimizer
    learning_rate = LEARNING_RATE_SCHEDULES[optimizer.schedule](
        peak_learning_rate(optimizer.learning_rate, config.train.batch_size, optimizer.reference_batch),
        total_steps,
        round(optimizer.warmup_epochs * steps_per_epoch),
    )
    negatives, candidates = config.negatives, config.queue.size or config.train.batch_size
    k = resolve_k(negatives.k, negatives.fraction, candidates)
    first_k = resolve_k(0, negatives.start_fraction, candidates)
    scheduled = negatives.schedule != 'constant'
    queue_axis = AXIS if config.queue.sharded else None
    return Method(
        encoder=build_encoder(config.model, groups=groups, span=span, axis_name=AXIS),
        views=views,
        seed=config.seed,
        symmetric=config.loss.symmetric,
        temperature=config.loss.temperature,
        hardness=config.loss.hardness,
        loss_scale=2 * config.loss.temperature if config.loss.two_tau else 1.0,
        key_weight=config.loss.key_weight,
        key_term=config.loss.key_term,
        shuffle_keys=config.loss.shuffle_keys,
        select=build_selector(negatives.selector, negatives, queue_axis),
        num_negatives=k,
        count_negatives=count_schedule(negatives.schedule, first_k, k, total_steps) if scheduled else None,
        mask_same_image=negatives.mask_same_image,
        queue_size=config.queue.size,
        queue_init=config.queue.init,
        queue_axis=queue_axis,
        accumulate_steps=config.train.accumulate_steps,
        ema=MOMENTUM_SCHEDULES[config.ema.schedule](config.ema.momentum, total_steps),
        learning_rate=learning_rate,
        optimizer=build_optimizer(
            optimizer.name,
            learning_rate,
            momentum=optimizer.momentum,
            weight_decay=optimizer.weight_decay,
            decay_norm_and_bias=optimizer.decay_norm_and_bias,
            frozen=('patch_embed',) if config.model.freeze_patches else (),
            lars=optimizer.lars,
            clip=optimizer.clip,
        ),
    )
