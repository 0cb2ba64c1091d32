"""The k largest entries of each row without sorting: a search for the value that exactly k entries reach.

`jax.lax.top_k` sorts (on TPU, the whole row). A loss over a set of negatives needs only the set, not its order, and the
set follows from a comparison with a threshold. Counting the entries above a guess takes one pass over a row. Cosine
similarities are approximately normally distributed, which makes the first guess good, and the counts improve the next
ones. For most rows the search takes about six passes, where bisection takes thirty. For 64 rows it takes about twelve
passes, or five with eight guesses in each pass. The algorithm is this project's own.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

SAMPLE = 2048
"""Number of entries of a row on which the first guess is based."""
PROBES, BISECT_EVERY = 1, 5
"""The number of guesses for each row in one pass. One in `BISECT_EVERY` passes divides the bracket evenly, whatever the
distribution; at most 32 of them end a search. 64 rows of 65,536 random cosines take 11 to 15 passes for the hardest
quarter, and 11 to 22 if one in 4 does."""
TPU_PROBES, TPU_BISECT_EVERY = 8, 3
"""The same on TPUs, where eight guesses cost as much as one by libtpu's estimate, and sixteen 1.7 times as much. The
result is the same. The same rows take 5 or 6 passes."""
CPU_FOLDS = 16
"""On CPUs, a row is divided into this many equal parts, whose entries are first compared and added to each other.

XLA:CPU writes the comparisons of a sum along rows to memory and reads them again. Sums of parts are one vectorized
loop: a pass over 16 rows of 4,096 entries takes 4 instead of 20 µs (CPU time, a Xeon with AVX-512)."""
FIRST_ERROR = 0.1
"""The error of the first guess, in standard deviations, that the probes of the first pass should cover."""
ERROR = 1.5
"""The error of a guess in a bracket with n entries, in units of √n entries, that the probes should cover."""
LEAN = 0.5
"""How far beyond the expected place a single guess aims, in standard deviations of its count. The k-th largest entry
then most likely lies between this guess and the nearer end of the bracket."""


class _Bracket(NamedTuple):
    """For each row [b]: at least k entries reach `lower`, fewer reach `upper`; both are ordered integers.

    `at_lower`, `at_upper`: how many entries reach them. `guess`: the place of the next probes, which are `apart`
    (float32) from each other. `turn`: [] number of passes so far.
    """

    lower: jax.Array
    upper: jax.Array
    at_lower: jax.Array
    at_upper: jax.Array
    guess: jax.Array
    apart: jax.Array
    turn: jax.Array


def largest(values: jax.Array, k: int | jax.Array, axis_name: str | None = None) -> jax.Array:
    """Marks the k largest entries of each row: the set that `jax.lax.top_k` finds.

    Args:
      values: [B, K] float32, -inf for entries that may not be chosen; no NaN.
      k: at least 0; an int, or an int32 scalar that may change from step to step.
      axis_name: name of the mapped axis if rows lie on its devices, K/n columns on each in order.

    Returns:
      [B, K] bool, with k true entries per row, or all entries that may be chosen if they are fewer. Of equal entries,
      those with lower indices are chosen.

    Example:
      >>> largest(jnp.array([[0.1, 0.9, 0.5], [0.3, -jnp.inf, -jnp.inf]]), 2).tolist()
      [[False, True, True], [True, False, False]]
    """
    values = jax.lax.stop_gradient(values)
    lower, upper, last = _boundary(values, k, axis_name)
    index = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :]
    return (values >= upper[:, None]) | ((values >= lower[:, None]) & (index <= last[:, None]))


def _boundary(values: jax.Array, k: int | jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds (lower, upper, last) [b]: entries >= upper are chosen, and those >= lower up to the index `last`."""
    found = jax.lax.platform_dependent(
        values,
        jnp.asarray(k, jnp.int32),
        tpu=partial(_search, axis_name=axis_name, probes=TPU_PROBES, bisect_every=TPU_BISECT_EVERY),
        cpu=partial(_search, axis_name=axis_name, probes=PROBES, bisect_every=BISECT_EVERY, folds=CPU_FOLDS),
        default=partial(_search, axis_name=axis_name, probes=PROBES, bisect_every=BISECT_EVERY),
    )
    lower, upper = _float(found.lower), _float(found.upper)
    ties = found.at_lower > k

    def last_of_ties(values: jax.Array) -> jax.Array:
        tied = (values >= lower[:, None]) & (values < upper[:, None])
        wanted = k - found.at_upper
        if axis_name is not None:  # the devices before this one come first
            counts = jax.lax.all_gather(tied.sum(axis=1, dtype=jnp.int32), axis_name)
            earlier = jnp.arange(counts.shape[0], dtype=jnp.int32) < jax.lax.axis_index(axis_name)
            wanted = wanted - jnp.where(earlier[:, None], counts, 0).sum(axis=0, dtype=jnp.int32)
        before = jnp.cumsum(tied, axis=1, dtype=jnp.int32) < wanted[:, None]
        last = jnp.where(wanted > 0, before.sum(axis=1, dtype=jnp.int32), -1)
        return jnp.where(ties, last, values.shape[1])

    def no_ties(values: jax.Array) -> jax.Array:
        return jnp.full(values.shape[:1], values.shape[1], jnp.int32)

    return lower, upper, jax.lax.cond(ties.any(), last_of_ties, no_ties, values)


# Jitted so that it is traced only once.
@partial(jax.jit, static_argnames=('axis_name', 'probes', 'bisect_every', 'folds'), inline=True)
def _search(
    values: jax.Array, k: jax.Array, axis_name: str | None, probes: int, bisect_every: int, folds: int = 1
) -> _Bracket:
    """Narrows the bracket of every row until min(k, allowed) entries reach `lower`, or no value lies in the bracket.

    Each pass over the values counts the entries that reach each of `probes` values of a row. The next values follow
    from the counts: linearly between the ends of the bracket, or, while it is open at an end, from the normal density.
    """
    rows, columns = values.shape
    reaching = partial(_count_reaching, values, axis_name=axis_name, folds=folds)
    allowed = reaching(jnp.full((rows, 1), jnp.finfo(jnp.float32).min))[:, 0]
    wanted = jnp.minimum(k, allowed)
    mean, spread = _of_first_device(_moments(values[:, :: -(-columns // SAMPLE)], axis_name), axis_name)
    aim = -ndtri((wanted.astype(jnp.float32) + 0.5) / (allowed.astype(jnp.float32) + 1.0))
    density = allowed.astype(jnp.float32) * norm.pdf(aim) / spread
    start = _Bracket(
        jnp.full((rows,), _BOTTOM, jnp.int32),
        jnp.full((rows,), _TOP, jnp.int32),
        allowed,
        jnp.zeros_like(allowed),
        _ordered(mean + spread * aim),
        2.0 * FIRST_ERROR * spread / probes,
        jnp.zeros((), jnp.int32),
    )
    search = _Search(reaching, allowed, wanted, spread, density, probes, bisect_every)
    return jax.lax.while_loop(lambda bracket: search.is_open(bracket).any(), search.narrow, start)


class _Search(NamedTuple):
    """What stays the same during a search in b rows.

    Attributes:
      reaching: a function of thresholds [b, n] that counts the entries of each row that reach them, [b, n] int32.
      allowed: [b] int32, how many entries may be chosen.
      wanted: [b] int32, how many are chosen.
      spread: [b] float32, the standard deviation of a row.
      density: [b] float32, how many entries there are per unit near the boundary if a row is normally distributed.
      probes: how many thresholds one pass counts for each row.
      bisect_every: one in this many passes divides the brackets evenly.
    """

    reaching: Callable[[jax.Array], jax.Array]
    allowed: jax.Array
    wanted: jax.Array
    spread: jax.Array
    density: jax.Array
    probes: int
    bisect_every: int

    def is_open(self, bracket: _Bracket) -> jax.Array:
        """Which rows need another pass, [b] bool."""
        return (bracket.at_lower != self.wanted) & (bracket.upper - 1 > bracket.lower)

    def narrow(self, bracket: _Bracket) -> _Bracket:
        """Takes one pass over the values: moves the ends of each bracket to the nearest probes, and guesses again."""
        probed = self.probe(bracket)
        reached = self.reaching(_float(probed))
        enough, is_open = reached >= self.wanted[:, None], self.is_open(bracket)
        raises, lowers = is_open[:, None] & enough, is_open[:, None] & ~enough
        lower = jnp.maximum(bracket.lower, jnp.where(raises, probed, _BOTTOM).max(axis=1))
        at_lower = jnp.minimum(bracket.at_lower, jnp.where(raises, reached, self.allowed[:, None]).min(axis=1))
        upper = jnp.minimum(bracket.upper, jnp.where(lowers, probed, _TOP).min(axis=1))
        at_upper = jnp.maximum(bracket.at_upper, jnp.where(lowers, reached, 0).max(axis=1))
        guess, apart = self.guess(lower, upper, at_lower, at_upper)
        return _Bracket(lower, upper, at_lower, at_upper, guess, apart, bracket.turn + 1)

    def probe(self, bracket: _Bracket) -> jax.Array:
        """Values inside the bracket, in ascending order: around the guess, or now and then evenly spaced. [b, n]"""
        places = jnp.arange(self.probes, dtype=jnp.int32)[None, :]
        from_middle = places.astype(jnp.float32) - (self.probes - 1) / 2
        lower, upper = bracket.lower[:, None], bracket.upper[:, None]
        around = _float(bracket.guess)[:, None] + from_middle * bracket.apart[:, None]
        evenly = lower + (places + 1) * (upper // (self.probes + 1) - lower // (self.probes + 1))
        halves = (bracket.turn > 0) & (bracket.turn % self.bisect_every == 0)
        return jnp.clip(jnp.where(halves, evenly, _ordered(around)), lower + 1, upper - 1)

    def guess(
        self, lower: jax.Array, upper: jax.Array, at_lower: jax.Array, at_upper: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The fields `guess` and `apart` of the bracket with these ends."""
        left, right = _float(lower), _float(upper)
        above, below = (at_lower - self.wanted).astype(jnp.float32), (self.wanted - at_upper).astype(jnp.float32)
        inside = jnp.maximum(above + below, 1.0)
        share = (above + 0.5) / inside
        lean = LEAN * jnp.sqrt(jnp.maximum(share * (1.0 - share), 0.0) / inside) if self.probes == 1 else 0.0
        share = jnp.clip(share + jnp.where(share < 0.5, lean, -lean), 0.02, 0.98)
        down, up = (right - _beyond(below) / self.density), (left + _beyond(above) / self.density)
        closed = (lower > _BOTTOM) & (upper < _TOP)
        between = left + (right - left) * share
        error = jnp.where(closed, ERROR / jnp.sqrt(inside) * (right - left), FIRST_ERROR * self.spread)
        guess = _ordered(jnp.where(closed, between, jnp.where(upper < _TOP, down, up)))
        return guess, 2.0 * error / self.probes


def _moments(sample: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the finite entries of each row, over all devices: float32 [b]."""
    weights = (sample > -jnp.inf).astype(jnp.float32)
    finite = jnp.where(sample > -jnp.inf, sample, 0.0)
    total, sum_ = _over_devices(jnp.stack([weights.sum(axis=1), finite.sum(axis=1)]), axis_name)
    total = jnp.maximum(total, 1.0)
    mean = sum_ / total
    squares = _over_devices((weights * (finite - mean[:, None]) ** 2).sum(axis=1), axis_name)
    return mean, jnp.sqrt(squares / total)


def _of_first_device(values: tuple[jax.Array, ...], axis_name: str | None) -> tuple[jax.Array, ...]:
    """Replaces values by those of the first device of an axis.

    Sums of floating-point numbers over devices need not have the same bits on all of them. The search does the same
    passes everywhere, with collectives in each, only if it starts from the same bits; all later sums are of integers.
    """
    if axis_name is None:
        return values
    is_first = jax.lax.axis_index(axis_name) == 0
    return jax.lax.psum(tuple(jnp.where(is_first, value, 0.0) for value in values), axis_name)  # exact: the rest is 0


def _count_reaching(values: jax.Array, thresholds: jax.Array, *, axis_name: str | None, folds: int) -> jax.Array:
    """How many entries of each row, over all devices, reach its thresholds [b, n]: int32 [b, n]."""
    each = [_count(values, column, folds) for column in thresholds.T]
    return _over_devices(jnp.stack(each, axis=1), axis_name)


def _over_devices(sums: jax.Array, axis_name: str | None) -> jax.Array:
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _beyond(entries: jax.Array) -> jax.Array:
    """Adds `LEAN` of its standard deviations to a number of entries: float32."""
    return entries + LEAN * jnp.sqrt(entries)


def _count(values: jax.Array, thresholds: jax.Array, folds: int) -> jax.Array:
    """Counts the entries of each row [b, K] that reach its threshold [b]: int32 [b]. `folds`: see `CPU_FOLDS`."""
    rows, columns = values.shape
    folds = math.gcd(columns, folds)
    if folds == 1 or columns > 2**24:  # float32 counts exactly up to 2**24
        return (values >= thresholds[:, None]).sum(axis=1, dtype=jnp.int32)
    folded = values.reshape(rows, folds, columns // folds)
    reached = [(folded[:, i] >= thresholds[:, None]).astype(jnp.int32) for i in range(folds)]
    return sum(reached[1:], reached[0]).astype(jnp.float32).sum(axis=1).astype(jnp.int32)


def _ordered(values: jax.Array) -> jax.Array:
    """Maps float32 to int32 in the same order: the bits, with all but the sign flipped for negative numbers."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _float(ordered: jax.Array) -> jax.Array:
    """The inverse of `_ordered`."""
    return jax.lax.bitcast_convert_type(jnp.where(ordered < 0, ordered ^ jnp.int32(0x7FFFFFFF), ordered), jnp.float32)


_BOTTOM = -(0x7F7FFFFF) - 1  # the lowest finite float
_TOP = 0x7F800000  # +inf
