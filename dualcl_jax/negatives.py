"""Which keys of the queue are negatives of an anchor: first what is allowed, then the hardest of it.

A selector is one function and one line of `SELECTORS`. It sees the cosine similarities of the anchors with every slot,
-inf where the slot may not be used, and says which of them enter the loss. Its gradient is that of picking values.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Selection(NamedTuple):
    """The selected negatives of B anchors.

    Attributes:
      similarities: [B, K'] float32 in [-1, 1], or -inf where a column holds no negative.
      slots: [B, K'] int32, the queue slot of each column; None when column j is slot j.
    """

    similarities: jax.Array
    slots: jax.Array | None

    def take(self, table: jax.Array) -> jax.Array:
        """[B, K'] entries of a [K] table, one for each selected negative."""
        if self.slots is None:
            return jnp.broadcast_to(table[None, :], self.similarities.shape)
        return table[self.slots]

    @property
    def chosen(self) -> jax.Array:
        """[B, K'] bool: which columns hold a negative."""
        return self.similarities > -jnp.inf


Selector = Callable[[jax.Array, int], Selection]


def select_all(similarities: jax.Array, k: int) -> Selection:
    """Every allowed slot (MoCo, 1911.05722); `k` plays no part."""
    del k
    return Selection(similarities, None)


def select_top_k(similarities: jax.Array, k: int) -> Selection:
    """The k allowed slots of largest similarity (2501.16360, selective negative sampling), by `jax.lax.top_k`.

    Of equal similarities the lower slot wins. Fewer than k where fewer are allowed.
    """
    return Selection(*jax.lax.top_k(similarities, min(k, similarities.shape[1])))


SELECTORS: dict[str, Selector] = {
    'all': select_all,
    'top_k': select_top_k,
}


def allowed_slots(valid: jax.Array, slot_ids: jax.Array, anchor_ids: jax.Array, *, mask_same_image: bool) -> jax.Array:
    """Which slots may be negatives of which anchor.

    Args:
      valid: [K] bool, slots that hold a key.
      slot_ids: [K] int32, image of each slot.
      anchor_ids: [B] int32, image of each anchor.
      mask_same_image: leave out older keys of the anchor's own image.

    Returns:
      [B, K] bool.
    """
    allowed = jnp.broadcast_to(valid[None, :], (anchor_ids.shape[0], valid.shape[0]))
    if mask_same_image:
        allowed = allowed & (slot_ids[None, :] != anchor_ids[:, None])
    return allowed


def resolve_k(k: int, fraction: float, queue_size: int) -> int:
    """The number of negatives to select: `k` where it is positive, else `fraction` of the queue, from 1 to its size."""
    wanted = k if k > 0 else round(fraction * queue_size)
    return max(1, min(wanted, queue_size))
