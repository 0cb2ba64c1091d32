"""The loss: InfoNCE against selected negatives, made symmetric over two views, with a term anchored at the key.

Every similarity and softmax is computed in float32 at `Precision.HIGHEST`, whatever the dtype of the encoder.
Accelerators would otherwise round the inputs of the product to bfloat16, which changes the order of the negatives.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp


class Selection(NamedTuple):
    """The selected negatives of B anchors.

    Attributes:
      similarities: [B, K'] float32 in [-1, 1], or -inf where a column has no negative.
      slots: [B, K'] int32, the queue slot of each column; None if column j is slot j.
    """

    similarities: jax.Array
    slots: jax.Array | None

    def take(self, table: jax.Array) -> jax.Array:
        """Looks up the entry of a table [K] for each selected negative: [B, K']."""
        if self.slots is None:
            return jnp.broadcast_to(table[None, :], self.similarities.shape)
        return table[self.slots]

    @property
    def chosen(self) -> jax.Array:
        """Which columns have a negative: bool [B, K']."""
        return self.similarities > -jnp.inf


Selector = Callable[..., Selection]
"""(similarities [B, K], k, rngs) -> Selection. `rngs` are [B] keys, one per anchor, or None; `random` needs them."""


def select_all(
    similarities: jax.Array, k: int | jax.Array, rngs: jax.Array | None = None, *, axis_name: str | None = None
) -> Selection:
    """Selects every allowed slot (MoCo, 1911.05722); `k` is not used, nor is the axis of a sharded queue.

    Example:
      >>> similarities = jnp.array([[0.9, -jnp.inf, 0.1]])
      >>> select_all(similarities, k=1).chosen.tolist()
      [[True, False, True]]
    """
    del k, rngs, axis_name
    return Selection(similarities, None)


def select_top_k(similarities: jax.Array, k: int, rngs: jax.Array | None = None) -> Selection:
    """Selects the k allowed slots of largest similarity (2501.16360, selective negative sampling), by `jax.lax.top_k`.

    Of equal similarities the lower slot is selected. If fewer than k slots are allowed, all of them are selected.

    Example:
      >>> similarities = jnp.array([[0.1, 0.9, 0.5, -jnp.inf]])
      >>> select_top_k(similarities, k=2).slots.tolist()
      [[1, 2]]
    """
    del rngs
    return Selection(*pick(similarities, partial(jax.lax.top_k, k=min(k, similarities.shape[1]))))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def pick(similarities: jax.Array, find: Callable[[jax.Array], tuple]) -> tuple[jax.Array, jax.Array]:
    """Picks values and slots [B, k] from each row of [B, K] with `find`, such as a partial `jax.lax.top_k`.

    The gradient declares that the slots of a row are distinct. JAX's own gradient does not, so on GPUs XLA would sum
    with atomic operations, in an order that changes from run to run.

    Example:
      >>> values, slots = pick(jnp.array([[0.1, 0.9, 0.5]]), partial(jax.lax.top_k, k=2))
      >>> slots.tolist()
      [[1, 2]]
    """
    values, slots = find(similarities)
    return values, slots


def _pick_forward(similarities: jax.Array, find: Callable[[jax.Array], tuple]) -> tuple[tuple, tuple]:
    values, slots = find(similarities)
    return (values, slots), (slots, similarities)


def _pick_backward(find: Callable[[jax.Array], tuple], saved: tuple, grads: tuple) -> tuple[jax.Array]:
    del find
    slots, similarities = saved
    rows = jnp.arange(slots.shape[0], dtype=jnp.int32)[:, None]
    zeros = jnp.zeros(similarities.shape, grads[0].dtype)
    return (zeros.at[rows, slots].set(grads[0], unique_indices=True, mode='promise_in_bounds'),)


pick.defvjp(_pick_forward, _pick_backward)


class HasLoss(Protocol):
    """Any object that has the losses of B anchors."""

    @property
    def loss(self) -> jax.Array:
        """The loss of each anchor, [B] float32."""
        ...


class Contrast(NamedTuple):
    """B anchors against their positives and selected negatives.

    Attributes:
      loss: [B] float32, at least 0; 0 for an anchor without negatives.
      positive: [B] float32, the cosine similarity of anchor and positive.
      selection: the negatives that entered the loss.
    """

    loss: jax.Array
    positive: jax.Array
    selection: Selection


AnyContrast = TypeVar('AnyContrast', bound=HasLoss)

SHORTEST = 1e-24
"""The squared length below which a row counts as zero."""


def normalize(features: jax.Array) -> jax.Array:
    """Scales the rows of [..., D] to unit length, in float32; a zero row remains zero, and has gradient 0.

    Example:
      >>> normalize(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    features = features.astype(jnp.float32)
    squares = (features**2).sum(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum(squares, SHORTEST))
    return features * jnp.where(squares < SHORTEST, 0.0, scale)  # else the gradient of a zero row is 1e12 times larger


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Similarities [M, N] of unit vectors a [M, D] and b [N, D]: one float32 product at full precision.

    Example:
      >>> cosine(jnp.eye(2), jnp.array([[1.0, 0.0], [0.0, -1.0]])).tolist()
      [[1.0, 0.0], [0.0, -1.0]]
    """
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_over(values: jax.Array, axis_name: str) -> jax.Array:
    """Sums values over the devices of an axis, as part of one loss that all of them share.

    The gradient with respect to the values of a device is that of this one loss. `jax.lax.psum` would give the gradient
    of the sum of all devices' copies of the loss.

    Example:
      >>> share = jax.vmap(jax.grad(lambda x: sum_over(x, 'devices')), axis_name='devices')
      >>> share(jnp.array([1.0, 2.0])).tolist()
      [1.0, 1.0]
    """
    return jax.lax.psum(values, axis_name)


sum_over.defvjp(lambda values, axis_name: (sum_over(values, axis_name), None), lambda axis_name, _, by_sum: (by_sum,))


def cross_entropy(
    positive: jax.Array,
    negatives: jax.Array,
    temperature: float,
    axis_name: str | None = None,
    hardness: float = 0.0,
) -> jax.Array:
    """Computes -log of the positive's share of the softmax over the positive and its negatives.

    With hardness β the N negatives are weighted by their hardness, w = N·exp(β·s/τ) / Σ exp(β·s/τ), after 2010.04592
    (with its τ⁺ = 0): loss = log(1 + Σ w·exp((s - positive)/τ)). The gradient flows through the weights.

    Args:
      positive: [B] similarities.
      negatives: [B, K'] similarities, -inf where there is none. A row without negatives has loss 0 and gradient 0.
      temperature: τ > 0.
      axis_name: name of the axis of devices if the negatives of a row lie on several devices, K'/n on each. The
        gradient on a device is then the contribution of its own negatives.
      hardness: β >= 0; at 0 all negatives have the same weight.

    Returns:
      [B] float32, the same on every device of the axis.

    Example:
      >>> loss = cross_entropy(jnp.array([0.9, 0.9]), jnp.array([[0.9, -jnp.inf], [-jnp.inf, -jnp.inf]]), 0.1)
      >>> [round(value, 4) for value in loss.tolist()]  # log 2, and 0 without negatives
      [0.6931, 0.0]
    """
    margins = (negatives - positive[:, None]) / temperature
    if hardness:
        return jnp.logaddexp(0.0, _log_weighted_sum(margins, hardness, axis_name))
    largest = jax.lax.stop_gradient(jnp.maximum(margins.max(axis=1, initial=-jnp.inf), 0.0))
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    total = jnp.exp(margins - largest[:, None]).sum(axis=1)
    if axis_name is not None:
        total = sum_over(total, axis_name)
    return largest + jnp.log(jnp.exp(-largest) + total)


def _log_weighted_sum(margins: jax.Array, hardness: float, axis_name: str | None) -> jax.Array:
    """log Σ w·exp(margin) [B] over margins [B, K'], w = N·exp(β·margin) / Σ exp(β·margin); -inf if all margins are."""
    count = (margins > -jnp.inf).sum(axis=1, dtype=jnp.float32)
    if axis_name is not None:
        count = jax.lax.psum(count, axis_name)

    def log_sum(values: jax.Array) -> jax.Array:
        largest = jax.lax.stop_gradient(values.max(axis=1, initial=-jnp.inf))
        if axis_name is not None:
            largest = jax.lax.pmax(largest, axis_name)
        largest = jnp.where(count > 0, largest, 0.0)
        total = jnp.exp(values - largest[:, None]).sum(axis=1)
        if axis_name is not None:
            total = sum_over(total, axis_name)
        return largest + jnp.log(jnp.where(count > 0, total, 1.0))

    by_hardness = log_sum((1.0 + hardness) * margins) - log_sum(hardness * margins)
    return jnp.where(count > 0, by_hardness + jnp.log(jnp.maximum(count, 1.0)), -jnp.inf)


def info_nce(
    anchors: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    allowed: jax.Array | None = None,
    *,
    temperature: float,
    hardness: float = 0.0,
    select: Selector = select_all,
    k: int | jax.Array = 0,
    rngs: jax.Array | None = None,
) -> Contrast:
    """Computes InfoNCE of anchors with their positives and selected negatives (1807.03748; selection: 2501.16360).

    -log( exp(a·p/τ) / (exp(a·p/τ) + Σ_{n ∈ N(a)} exp(a·n/τ)) ), N(a) = select(allowed negatives of a, k).

    Args:
      anchors: [B, D] unit vectors.
      positives: [B, D] unit vectors, row i the positive of anchor i.
      negatives: [K, D] unit vectors shared by all anchors, such as the keys of the queue.
      allowed: [B, K] bool, which negatives each anchor may use; None for all.
      temperature: τ > 0.
      hardness: β >= 0 of `cross_entropy`.
      select: a selector of `dualcl_jax.method.negatives.selectors`.
      k: how many negatives to select; `select_all` ignores it.
      rngs: [B] keys, for a selector that draws at random.

    Raises:
      AssertionError: the shapes do not match.

    Example:
      >>> rng = jax.random.key(0)
      >>> queries, keys, queue = (normalize(jax.random.normal(rng, (count, 8))) for count in (4, 4, 64))
      >>> contrast = info_nce(queries, keys, queue, temperature=0.1, select=select_top_k, k=16)
      >>> contrast.loss.shape, contrast.selection.similarities.shape
      ((4,), (4, 16))
    """
    chex.assert_equal_shape((anchors, positives))
    chex.assert_shape(negatives, (None, anchors.shape[1]))
    if allowed is not None:
        chex.assert_shape(allowed, (anchors.shape[0], negatives.shape[0]))
    positive = (anchors * positives).sum(axis=1)
    similarities = cosine(anchors, negatives)
    if allowed is not None:
        similarities = jnp.where(allowed, similarities, -jnp.inf)
    return contrast_similarities(
        positive, similarities, temperature=temperature, hardness=hardness, select=select, k=k, rngs=rngs
    )


def contrast_similarities(
    positive: jax.Array,
    similarities: jax.Array,
    *,
    temperature: float,
    hardness: float = 0.0,
    select: Selector,
    k: int | jax.Array,
    rngs: jax.Array | None = None,
    axis_name: str | None = None,
) -> Contrast:
    """Computes `info_nce` from similarities with the positives [B] and all candidates [B, K], -inf where not allowed.

    With `axis_name` the candidates lie on several devices, as in `cross_entropy`; the selector must support this.

    Example:
      >>> positive, similarities = jnp.array([0.9]), jnp.array([[0.1, 0.9, 0.5]])
      >>> contrast = contrast_similarities(positive, similarities, temperature=0.1, select=select_top_k, k=1)
      >>> round(float(contrast.loss[0]), 4)  # log 2: the selected negative is as similar as the positive
      0.6931
    """
    selection = select(similarities, k, rngs)
    loss = cross_entropy(positive, selection.similarities, temperature, axis_name, hardness)
    return Contrast(loss, positive, selection)


def dual_view_loss(
    queries: jax.Array,
    keys: jax.Array,
    contrast: Callable[[jax.Array, jax.Array], AnyContrast] | Sequence[Callable[[jax.Array, jax.Array], AnyContrast]],
    key_contrast: Callable[[jax.Array, jax.Array], HasLoss] | None = None,
    key_weight: float = 0.0,
) -> tuple[jax.Array, list[AnyContrast]]:
    """Computes the dual-view loss: the mean over view orders of (1 - w)·InfoNCE(q, k) + w·InfoNCE(k, q).

    The second term is anchored at the key, with the query as its positive. With two views, both act as query and as
    key: ½ InfoNCE(q_1, k_2) + ½ InfoNCE(q_2, k_1). This is the balance of query and key embeddings that 2501.16360
    proposes. With one view order (MoCo), q_1 is only compared with k_2.

    Args:
      queries: [V, B, D] unit vectors, V view orders.
      keys: [V, B, D] unit vectors without gradient; `keys[v]` is the positive of `queries[v]`.
      contrast: (anchors, positives) -> Contrast for queries as anchors, such as a partial `info_nce`;
        or one for each view order.
      key_contrast: like `contrast`, for keys as anchors; required if key_weight > 0.
      key_weight: w in [0, 1].

    Returns:
      The loss, [] float32, and the query-anchored Contrast of each view order.

    Raises:
      ValueError: key_weight > 0 without key_contrast.

    Example:
      >>> views, queue = normalize(jax.random.normal(jax.random.key(0), (2, 4, 8))), jnp.eye(8)
      >>> compare = partial(info_nce, negatives=queue, temperature=0.1, select=select_top_k, k=4)
      >>> loss, contrasts = dual_view_loss(queries=views, keys=views[::-1], contrast=compare)
      >>> loss.shape, len(contrasts)
      ((), 2)
    """
    pairs = list(zip(queries, keys, strict=True))
    each = contrast if isinstance(contrast, Sequence) else [contrast] * len(pairs)
    contrasts = [compare(query, key) for compare, (query, key) in zip(each, pairs, strict=True)]
    loss = jnp.stack([c.loss.mean() for c in contrasts]).mean()
    if key_weight:
        if key_contrast is None:
            raise ValueError(f'key_weight={key_weight} needs a key_contrast')
        key_loss = jnp.stack([key_contrast(key, query).loss.mean() for query, key in pairs]).mean()
        loss = (1.0 - key_weight) * loss + key_weight * key_loss
    return loss, contrasts


def chance_level(negatives: jax.Array) -> jax.Array:
    """Mean log(1 + number of negatives [B]), [] float32: the loss of an encoder that cannot recognise the positive.

    Example:
      >>> round(float(chance_level(jnp.array([1023, 1023]))), 4)  # log 1,024
      6.9315
    """
    return jnp.log1p(negatives.astype(jnp.float32)).mean()
