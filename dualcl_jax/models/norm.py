"""Batch normalisation with statistics per group: part of one device, a block of devices, or all devices."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.layers import bias_init, norm_scale_init
from dualcl_jax.system.errors import UserError

LOCAL = 'local'
"""The `model.norm` that means one group for each device."""


def norm_layout(norm: str, num_devices: int) -> tuple[int, int]:
    """Translates `model.norm` into the `groups` and `span` of `BatchNorm`.

    Args:
      norm: 'local' (each device is a group), 'sync' (the whole batch is one group), or 'split:n' (n groups of the
        global batch, whatever the number of devices; n must divide that number or be a multiple of it).
      num_devices: devices of the data axis.

    Returns:
      (groups on each device, consecutive devices that share a group); one of them is 1.

    Raises:
      UserError: the text is none of these, or n does not fit the devices.
    """
    if norm == LOCAL:
        return 1, 1
    if norm == 'sync':
        return 1, num_devices
    kind, _, count = norm.partition(':')
    if kind != 'split' or not count.isdecimal() or int(count) < 1:
        raise UserError(f"model.norm={norm!r}: use 'local', 'sync' or 'split:n' with n at least 1")
    total = int(count)
    if total % num_devices == 0:
        return total // num_devices, 1
    if num_devices % total == 0:
        return 1, num_devices // total
    raise UserError(
        f'model.norm={norm!r}: {total} groups do not fit {num_devices} devices; '
        f'they fit {", ".join(str(n) for n in range(1, total + 1) if total % n == 0)} devices, or a multiple of {total}'
    )


class BatchNorm(nn.Module):
    """Batch normalisation over groups of the batch (Ioffe and Szegedy, arXiv 1502.03167; the groups are ours).

    In training each group is normalised by its own mean and biased variance per channel, in float32. The running
    statistics follow r <- momentum * r + (1 - momentum) * s, where s is the average over all groups of all devices,
    hence the same on each, and uses the unbiased variance, as PyTorch does. Gradients flow through the statistics,
    also across devices: with the mean loss of each device's part, averaging the gradients over the axis gives the
    gradient of the mean loss of the whole batch. Evaluation uses the running statistics. Neither
    evaluation nor initialisation communicates.

    Parameters, where `affine`: `scale`, `bias`, float32 [C]. Collection `batch_stats`: `mean`, `var`, float32 [C].

    Attributes:
      groups: equal contiguous parts of the leading axis on this device, for instance views times splits.
      span: the number of consecutive devices along the axis whose equally placed groups form one group. 1 communicates
        only for the running statistics; the size of the axis synchronises the statistics. It must divide the size of
        the axis.
      axis_name: name of the mapped data axis; None on one device.
      momentum: weight of the old running statistics in the update.
      epsilon: added to the variance.
      affine: learn a scale and a bias; otherwise they are 1 and 0.
      dtype: the dtype of the output.
    """

    groups: int = 1
    span: int = 1
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    affine: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x [N, ..., C] (any float dtype); returns the same shape in `dtype`.

        Raises:
          ValueError: `groups` does not divide N, or `span` does not divide the size of the axis.
        """
        channels = x.shape[-1]
        scale, bias = jnp.ones((channels,), jnp.float32), jnp.zeros((channels,), jnp.float32)
        if self.affine:
            scale = self.param('scale', norm_scale_init, (channels,), jnp.float32)
            bias = self.param('bias', bias_init, (channels,), jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)

        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            return _affine(x[None], factor[None], (bias - running_mean.value * factor)[None], self.dtype)[0]

        if x.shape[0] % self.groups:
            raise ValueError(f'a batch of {x.shape[0]} on each device does not split into {self.groups} equal groups')
        grouped = x.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])
        axis_name = None if self.is_initializing() else self.axis_name
        moments, averaged = _moments(grouped, self.span, axis_name)
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * averaged[0]
            running_var.value = keep * running_var.value + (1 - keep) * averaged[1]
        mean, var = moments[:, 0], _variance(moments)
        factor = scale[None] * jax.lax.rsqrt(var + self.epsilon)
        return _affine(grouped, factor, bias[None] - mean * factor, self.dtype).reshape(x.shape)


def _affine(x: jax.Array, factor: jax.Array, offset: jax.Array, dtype: Any) -> jax.Array:
    """x [G, N, ..., C] times factor [G, C] plus offset [G, C], computed in float32, returned in `dtype`."""
    shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
    return (x.astype(jnp.float32) * factor.reshape(shape) + offset.reshape(shape)).astype(dtype)


def _variance(moments: jax.Array) -> jax.Array:
    """Biased variance [..., C] from the mean and mean square [..., 2, C]; rounding cannot make it negative."""
    return jnp.maximum(moments[..., 1, :] - jnp.square(moments[..., 0, :]), 0)


def _moments(x: jax.Array, span: int, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Statistics of x [G, N, ..., C], with at most one collective.

    Returns:
      Mean and mean square of the groups that this device is part of, float32 [G, 2, C]; and the mean and unbiased
      variance averaged over all groups of all devices, float32 [2, C], without gradient.
    """
    x = x.astype(jnp.float32)
    axes = tuple(range(1, x.ndim - 1))
    moments = jnp.stack([jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)], axis=1)
    count = span * (x.size // (x.shape[0] * x.shape[-1]))

    def average(all_moments: jax.Array) -> jax.Array:
        """Averages [groups, 2, C] into [2, C] and turns the mean square into the unbiased variance."""
        all_moments = jax.lax.stop_gradient(all_moments)
        unbiased = _variance(all_moments) * (count / max(count - 1, 1))
        return jnp.stack([all_moments[:, 0].mean(0), unbiased.mean(0)])

    if axis_name is None:
        return moments, average(moments)
    size = jax.lax.axis_size(axis_name)
    if size % span:
        raise ValueError(f'a span of {span} devices does not divide the {size} devices of axis {axis_name!r}')
    if span == 1:
        return moments, jax.lax.pmean(average(moments), axis_name)
    if span == size:
        moments = jax.lax.pmean(moments, axis_name)
        return moments, average(moments)
    blocks = jax.lax.all_gather(moments, axis_name).reshape(size // span, span, *moments.shape).mean(1)
    own = jax.lax.axis_index(axis_name) // span
    return jax.lax.dynamic_index_in_dim(blocks, own, keepdims=False), average(blocks.reshape(-1, *moments.shape[1:]))
