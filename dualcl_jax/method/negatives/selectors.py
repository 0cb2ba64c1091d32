"""Selection of an anchor's negatives from the queue: first which keys are allowed, then which of them enter the loss.

A selector is one function and one entry of `SELECTORS`. It takes the cosine similarities of the anchors with all slots,
-inf where a slot is not allowed, and returns those that enter the loss. Its gradient is that of picking values.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from dualcl_jax.losses import Selection, Selector, pick, select_all, select_top_k
from dualcl_jax.method.negatives.top_k import largest
from dualcl_jax.system.errors import UserError, first_line
from dualcl_jax.system.user_modules import find_own, is_missing

RECALL = 0.95
"""Share of the k largest that `select_approx_max_k` is expected to find."""


def select_threshold(
    similarities: jax.Array, k: int | jax.Array, rngs: jax.Array | None = None, *, axis_name: str | None = None
) -> Selection:
    """Selects the negatives of `select_top_k` without a sort (`dualcl_jax.method.negatives.top_k`); k may be traced.

    Example:
      >>> select_threshold(jnp.array([[0.1, 0.9, 0.5]]), k=2).chosen.tolist()
      [[False, True, True]]
    """
    del rngs
    return _masked(similarities, largest(similarities, k, axis_name))


def select_approx_max_k(similarities: jax.Array, k: int, rngs: jax.Array | None = None) -> Selection:
    """Selects approximately the k allowed slots of largest similarity, by `jax.lax.approx_max_k` (2206.14286).

    On TPUs, for which it is made, it is expected to find the share `RECALL` of them. Other backends find all of them.

    Example:
      >>> select_approx_max_k(jnp.array([[0.1, 0.9, 0.5]]), k=2).slots.tolist()
      [[1, 2]]
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
    """Selects the k hardest allowed slots after the `skip` hardest, which most likely are of the anchor's own class.

    If fewer than skip + k slots are allowed, fewer are selected. This follows the ring of 2010.02037; defining the ring
    by counts is this project's choice.

    Example:
      >>> select_ring(jnp.array([[0.1, 0.9, 0.5, 0.3]]), k=2, skip=1).chosen.tolist()
      [[False, False, True, True]]
    """
    del rngs
    inner, outer = largest(similarities, skip, axis_name), largest(similarities, skip + k, axis_name)
    return _masked(similarities, outer & ~inner)


def select_random(similarities: jax.Array, k: int | jax.Array, rngs: jax.Array | None = None) -> Selection:
    """Selects k allowed slots at random, all sets equally likely: a baseline for hard negatives, like a smaller queue.

    Raises:
      ValueError: there are no rngs.

    Example:
      >>> rngs = jax.random.split(jax.random.key(0), 1)
      >>> int(select_random(jnp.array([[0.1, 0.9, 0.5]]), k=2, rngs=rngs).chosen.sum())
      2
    """
    if rngs is None:
        raise ValueError('select_random needs rngs, one key for each anchor')
    draws = jax.vmap(lambda rng: jax.random.uniform(rng, similarities.shape[1:]))(rngs)
    return _masked(similarities, largest(jnp.where(similarities > -jnp.inf, draws, -jnp.inf), k))


class SelectorSpec(NamedTuple):
    """A selector, and what else a method needs to know of it.

    Attributes:
      select: selects from a whole queue, or from the batch. It sees some of the anchors at a time.
      sharded: selects from this device's slots of a queue that is sharded over the devices of `axis_name`, an argument
        that it takes; None if no function can.
      counted: whether k may be an int32 scalar that changes from step to step: it is a value and not a shape.
      fields: the fields of `negatives` in a config that both functions take as keyword arguments.
    """

    select: Selector
    sharded: Selector | None = None
    counted: bool = False
    fields: tuple[str, ...] = ()


SELECTORS: dict[str, SelectorSpec] = {
    'all': SelectorSpec(select_all, sharded=select_all),
    'top_k': SelectorSpec(select_top_k, sharded=select_threshold),  # the same set
    'threshold': SelectorSpec(select_threshold, sharded=select_threshold, counted=True),
    'approx_max_k': SelectorSpec(select_approx_max_k),
    'ring': SelectorSpec(select_ring, sharded=select_ring, counted=True, fields=('skip',)),
    'random': SelectorSpec(select_random, counted=True),
}


AUTO = 'auto'
"""The value of a config field that stands for `EXACT[0]`, or for the choice that a stored run made in its place."""
EXACT = ('threshold', 'top_k')
"""Selectors of exactly the k hardest; on CPUs the first is never slower (`python -m experiments.benchmark head`).

On one core of a Xeon, 16 of 65,536 keys take 127 ms with `threshold` and 131 ms with `top_k`, 512 of them 125 and
205 ms (256 anchors, CPU time). TPUs sort whole rows for `top_k`; `compile` shows the memory. GPUs: not measured. The
choice does not depend on the machine. Both select the same negatives but add their losses in a different order, so a
choice by measurement would change the last bits of a state from machine to machine, and from start to start."""


def find_selector(name: str) -> SelectorSpec:
    """The entry of a selector.

    Args:
      name: a key of `SELECTORS`, or 'module:name' of a function of the user's own, or of a `SelectorSpec` with one, in
        a module that the program has imported. It is never imported here (`dualcl_jax.system.user_modules`).

    Raises:
      UserError: there is no such selector, or it cannot be called like those of `SELECTORS`.

    Example:
      >>> find_selector('ring').fields
      ('skip',)
    """
    if name in SELECTORS:
        return SELECTORS[name]
    found = find_own('negatives.selector', name, SELECTORS, 'MODULE:FUNCTION', _is_selector, 'selector')
    spec = found if isinstance(found, SelectorSpec) else SelectorSpec(found)
    options = dict.fromkeys(spec.fields)
    try:
        inspect.signature(spec.select).bind(None, 1, None, **options)
        if spec.sharded is not None:
            inspect.signature(spec.sharded).bind(None, 1, None, **options, axis_name='')
    except (TypeError, ValueError) as error:  # ValueError: a function of C without a signature
        raise UserError(
            f'negatives.selector={name!r}: must be called with similarities, k and rngs ({error}); '
            'docs/python.md has an example'
        ) from error
    return spec


def _is_selector(found: Any) -> bool:
    return callable(found) or isinstance(found, SelectorSpec)


def build_selector(name: str, settings: Mapping[str, Any], axis_name: str | None = None) -> Selector:
    """Builds a selector.

    A stored run can be opened without the module of its own selector, since its encoder does not need it: the result
    then raises the error of `find_selector` when it is called.

    Args:
      name: a name that `find_selector` knows; with an axis, one that has `SelectorSpec.sharded`.
      settings: the values of its `SelectorSpec.fields`, by name; others are not used.
      axis_name: axis of the devices that a sharded queue lies on.

    Raises:
      UserError: a selector of the user's own lacks one of its fields, fails, or does not return a `Selection`.

    Example:
      >>> build_selector('ring', {'skip': 1})(jnp.array([[0.1, 0.9, 0.5]]), k=1).chosen.tolist()
      [[False, False, True]]
    """
    if is_missing(name):
        return partial(_not_imported, name)
    spec = find_selector(name)
    if lacking := [field for field in spec.fields if field not in settings]:
        raise UserError(f'negatives.selector={name!r}: its SelectorSpec names unknown fields: {", ".join(lacking)}')
    options = {field: settings[field] for field in spec.fields}
    if name not in SELECTORS:
        _try_out(name, partial(spec.select, **options), counted=spec.counted)
    if axis_name is None:
        return partial(spec.select, **options) if options else spec.select
    if spec.sharded is None:
        raise ValueError(f'{name} cannot select from a sharded queue')
    return partial(spec.sharded, **options, axis_name=axis_name)


def _not_imported(name: str, *arguments: Any, **options: Any) -> NoReturn:
    """Raises the UserError of a selector whose module is not imported."""
    del arguments, options
    find_selector(name)
    raise UserError(f'negatives.selector={name!r}: was imported after the method was built; start again')


def _try_out(name: str, select: Selector, *, counted: bool) -> None:
    """Traces a selector of the user's own for two anchors. Raises UserError if it fails or returns something else."""
    similarities = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    rngs = jax.eval_shape(lambda: jax.random.split(jax.random.key(0)))
    try:
        if counted:
            found = jax.eval_shape(select, similarities, jax.ShapeDtypeStruct((), jnp.int32), rngs)
        else:
            found = jax.eval_shape(lambda similarities, rngs: select(similarities, 1, rngs), similarities, rngs)
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f'negatives.selector={name!r}: {type(error).__name__}: {first_line(error)}') from error
    if not isinstance(found, Selection):
        kind = 'an array' if isinstance(found, jax.ShapeDtypeStruct) else type(found).__name__
        raise UserError(f'negatives.selector={name!r}: must return a Selection, not {kind}')
    columns = similarities.shape[1]
    if found.slots is not None and getattr(found.similarities, 'ndim', 0) == 2:
        columns = found.similarities.shape[1]
    values, slots = map(_described, found)
    if (values, slots) != (f'float32 [2, {columns}]', 'None' if found.slots is None else f'int32 [2, {columns}]'):
        raise UserError(
            f'negatives.selector={name!r}: of similarities [2, 4] it returns similarities {values} and slots {slots}; '
            'must be float32 [2, K] and int32 [2, K], or float32 [2, 4] and None'
        )


def _described(part: Any) -> str:
    """The dtype and the shape of an array, such as 'float32 [2, 4]'; of anything else, its type or 'None'."""
    if not isinstance(part, jax.ShapeDtypeStruct):
        return 'None' if part is None else type(part).__name__
    return f'{part.dtype.name} {list(part.shape)}'


def _masked(similarities: jax.Array, chosen: jax.Array) -> Selection:
    return Selection(jnp.where(chosen, similarities, -jnp.inf), None)


def allowed_slots(valid: jax.Array, slot_ids: jax.Array, anchor_ids: jax.Array, *, mask_same_image: bool) -> jax.Array:
    """Marks which slots may be negatives of each anchor.

    Args:
      valid: [K] bool, slots that hold a key.
      slot_ids: [K] int32, image of each slot.
      anchor_ids: [B] int32, image of each anchor.
      mask_same_image: exclude older keys of the anchor's own image.

    Returns:
      [B, K] bool.

    Example:
      >>> valid, slot_ids = jnp.array([True, True, False]), jnp.array([7, 8, -1])
      >>> allowed_slots(valid, slot_ids, jnp.array([8]), mask_same_image=True).tolist()
      [[True, False, False]]
    """
    allowed = jnp.broadcast_to(valid[None, :], (anchor_ids.shape[0], valid.shape[0]))
    if mask_same_image:
        allowed = allowed & (slot_ids[None, :] != anchor_ids[:, None])
    return allowed


def resolve_k(k: int, fraction: float, queue_size: int) -> int:
    """The number of negatives to select: `k` if it is positive, else `fraction` of the queue; from 1 to its size.

    Without a queue, `queue_size` is the number of candidates in the batch.

    Example:
      >>> resolve_k(0, 0.25, queue_size=4096), resolve_k(10_000, 0.25, queue_size=4096)
      (1024, 4096)
    """
    wanted = k if k > 0 else round(fraction * queue_size)
    return max(1, min(wanted, queue_size))
