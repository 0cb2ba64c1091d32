"""Optimizers and schedules. Every schedule is a pure function of the step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]


def learning_rate_schedule(peak: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Rises linearly from 0 to `peak`, then falls to 0 at `total_steps` as half a cosine (1608.03983; 2104.02057, §A).

    The first update has step 0. `warmup_steps` must be less than `total_steps`.
    """

    def schedule(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        warmup = t / max(warmup_steps, 1)
        progress = jnp.clip((t - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(t < warmup_steps, warmup, cosine)

    return schedule


def step_schedule(peak: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Rises linearly from 0 to `peak`, then falls to a tenth at 60 % and again at 80 % of the run (1911.05722, §4)."""

    def schedule(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        drops = (t >= 0.6 * total_steps).astype(jnp.float32) + (t >= 0.8 * total_steps).astype(jnp.float32)
        return peak * jnp.where(t < warmup_steps, t / max(warmup_steps, 1), 0.1**drops)

    return schedule


LEARNING_RATE_SCHEDULES: dict[str, Callable[[float, int, int], Schedule]] = {
    'cosine': learning_rate_schedule,
    'step': step_schedule,
}


def peak_learning_rate(learning_rate: float, batch_size: int, reference_batch: int) -> float:
    """Applies the linear scaling rule (1706.02677, §2.1): `learning_rate` times `batch_size` / `reference_batch`.

    With a reference of 0 the learning rate is not scaled.
    """
    return learning_rate * batch_size / reference_batch if reference_batch else learning_rate


def count_schedule(name: str, first: int, last: int, total_steps: int) -> Schedule:
    """Schedules the number of negatives, int32, from `first` to `last`: 'linear', or half a 'cosine' (ours)."""

    def schedule(step: jax.Array) -> jax.Array:
        progress = jnp.asarray(step, jnp.float32) / total_steps
        share = progress if name == 'linear' else 0.5 * (1.0 - jnp.cos(jnp.pi * progress))
        return jnp.round(first + (last - first) * share).astype(jnp.int32)

    return schedule


def constant_momentum(momentum: float, total_steps: int) -> Schedule:
    """Schedules the same m at every step (1911.05722)."""
    del total_steps
    return lambda step: jnp.full((), momentum, jnp.float32)


def cosine_momentum(momentum: float, total_steps: int) -> Schedule:
    """Raises m from `momentum` to 1 as half a cosine: 1 - (1 - m)·(1 + cos(πt/T))/2 (2006.07733; 2104.02057, §A)."""

    def schedule(step: jax.Array) -> jax.Array:
        progress = jnp.asarray(step, jnp.float32) / total_steps
        return 1.0 - (1.0 - momentum) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    return schedule


MOMENTUM_SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    'constant': constant_momentum,
    'cosine': cosine_momentum,
}


Mask = Callable[[optax.Params], optax.Params]


def is_weight(params: optax.Params) -> optax.Params:
    """Marks kernels as True, and biases and normalisation scales as False, in the structure of `params`."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


POSITIONS_PARAMETER = 'pos_embed'
"""The name of the parameter with the learned positions of a ViT."""


def decay_mask(*, decay_norm_and_bias: bool, frozen: Sequence[str] = ()) -> Mask:
    """Builds a function that marks which parameters decay.

    Args:
      decay_norm_and_bias: whether every parameter decays; otherwise those of `is_weight` decay, except the learned
        positions of a ViT, as in timm.
      frozen: names of layers that do not decay.
    """

    def decays(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        names = [getattr(entry, 'key', None) for entry in path]
        in_general = decay_norm_and_bias or (leaf.ndim > 1 and POSITIONS_PARAMETER not in names)
        return in_general and not any(name in names for name in frozen)

    return partial(jax.tree_util.tree_map_with_path, decays)


def _sgd(learning_rate: Schedule, momentum: float, weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _lars(learning_rate: Schedule, momentum: float, weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    return optax.lars(learning_rate, weight_decay, mask, trust_ratio_mask=is_weight, momentum=momentum)


def _lars_rate_last(
    learning_rate: Schedule, momentum: float, weight_decay: float, mask: Mask
) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), is_weight),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


RATE_FIRST, RATE_LAST = 'rate_first', 'rate_last'
LARS = {RATE_FIRST: _lars, RATE_LAST: _lars_rate_last}
"""Whether LARS applies the learning rate before its momentum (1708.03888) or after it (the code of 2104.02057)."""


def _adamw(learning_rate: Schedule, momentum: float, weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    adamw = optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay, mask=mask)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion('standard'):  # AdamW's bias correction raises a float to an int32 count
            return adamw.update(updates, state, params)

    return optax.GradientTransformation(adamw.init, update)


OPTIMIZERS: dict[str, Callable[[Schedule, float, float, Mask], optax.GradientTransformation]] = {
    'sgd': _sgd,
    'lars': _lars,
    'adamw': _adamw,
}


def build_optimizer(
    name: str,
    learning_rate: Schedule,
    *,
    momentum: float,
    weight_decay: float,
    decay_norm_and_bias: bool,
    frozen: Sequence[str] = (),
    lars: str = RATE_FIRST,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Builds an optimizer of the table `OPTIMIZERS`.

    Args:
      name: 'sgd' (adds the decay to the gradient, as PyTorch does), 'lars' (1708.03888) or 'adamw' (1711.05101).
      learning_rate: a schedule of the step.
      momentum: the momentum of sgd and lars; β1 of adamw.
      weight_decay: at least 0.
      decay_norm_and_bias: whether every parameter decays (MoCo); otherwise kernels and the embeddings of text do.
      frozen: names of layers without gradient. They do not decay either, and so never change.
      lars: a key of `LARS`, for 'lars'.
      clip: the norm to which larger gradients are first scaled down; 0 for no clipping.
    """
    mask = decay_mask(decay_norm_and_bias=decay_norm_and_bias, frozen=frozen)
    create = LARS[lars] if name == 'lars' else OPTIMIZERS[name]
    optimizer = create(learning_rate, momentum, weight_decay, mask)
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer


def at_step(state: optax.OptState, step: jax.Array) -> optax.OptState:
    """The state of an optimizer whose schedules have reached a step, though some of the steps may have been skipped.

    The number of gradients in the moments of AdamW, by which it corrects their bias, does not change.
    """

    def of_schedule(path: Sequence[Any], value: Any) -> bool:
        del value
        return getattr(path[-1], 'tuple_name', '') == optax.ScaleByScheduleState.__name__

    return optax.tree.set(state, of_schedule, count=step)
