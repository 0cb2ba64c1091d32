"""Which keys of the queue are negatives of an anchor: first what is allowed, then the hardest of it.

A selector is one function and one line of `SELECTORS`. It sees the cosine similarities of the anchors with every slot,
-inf where the slot may not be used, and says which of them enter the loss. Its gradient is that of picking values.
"""

from functools import partial

import jax
import jax.numpy as jnp

from dualcl_jax.losses import Selection, Selector, pick, select_all, select_top_k
from dualcl_jax.method.negatives.top_k import largest

RECALL = 0.95
"""Share of the k largest that `select_approx_max_k` is expected to find."""


def select_threshold(
    similarities: jax.Array, k: int | jax.Array, rngs: jax.Array | None = None, *, axis_name: str | None = None
) -> Selection:
    """The negatives of `select_top_k`, found without a sort (`dualcl_jax.method.negatives.top_k`); k may be traced."""
    del rngs
    return _masked(similarities, largest(similarities, k, axis_name))


def select_approx_max_k(similarities: jax.Array, k: int, rngs: jax.Array | None = None) -> Selection:
    """About the k allowed slots of largest similarity, by `jax.lax.approx_max_k` (2206.14286) at its default recall.

    Made for TPU, where `RECALL` of the k are expected to be found; other backends find them all.
    """
    del rngs
    find = partial(jax.lax.approx_max_k, k=min(k, similarities.shape[1]), recall_target=RECALL)
    return Selection(*pick(similarities, find))


def select_ring(
    similarities: jax.Array,
    k: int | jax.Array,
    rngs: jax.Array | None = None,
    *,
    skip: int = 0,
    axis_name: str | None = None,
) -> Selection:
    """The k hardest allowed slots after the `skip` hardest, which are the likeliest of the anchor's own class.

    Where fewer than skip + k are allowed, fewer are selected. After the ring of 2010.02037; by count, ours.
    """
    del rngs
    inner, outer = largest(similarities, skip, axis_name), largest(similarities, skip + k, axis_name)
    return _masked(similarities, outer & ~inner)


def select_random(similarities: jax.Array, k: int | jax.Array, rngs: jax.Array | None = None) -> Selection:
    """k allowed slots at random, each set as likely: a smaller queue, to compare hardness with."""
    if rngs is None:
        raise ValueError('select_random needs rngs, one key for each anchor')
    draws = jax.vmap(lambda rng: jax.random.uniform(rng, similarities.shape[1:]))(rngs)
    return _masked(similarities, largest(jnp.where(similarities > -jnp.inf, draws, -jnp.inf), k))


SELECTORS: dict[str, Selector] = {
    'all': select_all,
    'top_k': select_top_k,
    'threshold': select_threshold,
    'approx_max_k': select_approx_max_k,
    'ring': select_ring,
    'random': select_random,
}


AUTO = 'auto'
"""In a config: the one of `EXACT` that `fastest_exact` names."""
EXACT = ('top_k', 'threshold')
"""Those that select exactly the k hardest."""


def fastest_exact(platform: str, k: int, candidates: int) -> str:
    """The name of the fastest selector of exactly the k hardest, as `python -m experiments.benchmark head` measures it.

    On CPUs a sort pays only for few of many. On GPUs `threshold` takes 0.4 of the time of `top_k` for 16,384 of 65,536
    keys (H200, 0.49 and 1.21 ms), and as long for 1,024 of 4,096 (0.26 and 0.23 ms). TPUs sort whole rows for `top_k`;
    `compile` shows the memory.
    """
    return 'top_k' if platform == 'cpu' and k <= candidates // 128 else 'threshold'


SHARDED = ('all', 'top_k', 'threshold', 'ring')
"""Those that can select from a queue that lies on several devices, K/n slots on each."""


def build_selector(name: str, skip: int, axis_name: str | None = None) -> Selector:
    """A selector of the table.

    Args:
      name: of `SELECTORS`, of `SHARDED` with an axis.
      skip: how many of the hardest `ring` leaves out.
      axis_name: of the devices that a sharded queue lies on. `top_k` then is `threshold`, which selects the same.
    """
    if name == 'ring':
        return partial(select_ring, skip=skip, axis_name=axis_name)
    if name == 'all' or axis_name is None:
        return SELECTORS[name]
    return partial(select_threshold, axis_name=axis_name)


def _masked(similarities: jax.Array, chosen: jax.Array) -> Selection:
    return Selection(jnp.where(chosen, similarities, -jnp.inf), None)


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
    """The number of negatives to select: `k` where it is positive, else `fraction` of the queue, from 1 to its size.

    Without a queue, the candidates of the batch are what is selected from.
    """
    wanted = k if k > 0 else round(fraction * queue_size)
    return max(1, min(wanted, queue_size))
