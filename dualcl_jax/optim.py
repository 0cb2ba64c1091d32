"""Optimizers and schedules. Every schedule is a pure function of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]


def learning_rate_schedule(peak: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Linear warm-up from 0 to `peak`, then half a cosine to 0 at `total_steps` (1608.03983; 2104.02057, §A).

    Step t is 0 for the first update. `warmup_steps` must be below `total_steps`.
    """

    def schedule(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        warmup = t / max(warmup_steps, 1)
        progress = jnp.clip((t - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(t < warmup_steps, warmup, cosine)

    return schedule


def constant_momentum(momentum: float, total_steps: int) -> Schedule:
    """The same m at every step (1911.05722)."""
    del total_steps
    return lambda step: jnp.full((), momentum, jnp.float32)


def cosine_momentum(momentum: float, total_steps: int) -> Schedule:
    """m rises from `momentum` to 1 by half a cosine: 1 - (1 - m)·(1 + cos(πt/T))/2 (2006.07733; 2104.02057, §A)."""

    def schedule(step: jax.Array) -> jax.Array:
        progress = jnp.asarray(step, jnp.float32) / total_steps
        return 1.0 - (1.0 - momentum) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    return schedule


MOMENTUM_SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    'constant': constant_momentum,
    'cosine': cosine_momentum,
}


def is_weight(params: optax.Params) -> optax.Params:
    """True for kernels, False for biases and the scales of normalisation layers, in the shape of `params`."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _sgd(
    learning_rate: Schedule, momentum: float, weight_decay: float, mask: Callable | None
) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _lars(
    learning_rate: Schedule, momentum: float, weight_decay: float, mask: Callable | None
) -> optax.GradientTransformation:
    return optax.lars(learning_rate, weight_decay, mask or True, trust_ratio_mask=is_weight, momentum=momentum)


def _adamw(
    learning_rate: Schedule, momentum: float, weight_decay: float, mask: Callable | None
) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay, mask=mask)


OPTIMIZERS: dict[str, Callable[[Schedule, float, float, Callable | None], optax.GradientTransformation]] = {
    'sgd': _sgd,
    'lars': _lars,
    'adamw': _adamw,
}


def build_optimizer(
    name: str, learning_rate: Schedule, *, momentum: float, weight_decay: float, decay_norm_and_bias: bool
) -> optax.GradientTransformation:
    """An optimizer of `OPTIMIZERS`.

    Args:
      name: 'sgd' (decay added to the gradient, as PyTorch does), 'lars' (1708.03888) or 'adamw' (1711.05101).
      learning_rate: schedule of the step.
      momentum: of sgd and lars; β1 of adamw.
      weight_decay: at least 0.
      decay_norm_and_bias: decay every parameter (MoCo); otherwise kernels alone.
    """
    return OPTIMIZERS[name](learning_rate, momentum, weight_decay, None if decay_norm_and_bias else is_weight)
