"""95 % confidence intervals of the numbers that an evaluation reports."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


class Interval(NamedTuple):
    """The interval from `low` to `high`, by `method`: 'wilson', 'normal' or 'fisher'."""

    low: float
    high: float
    method: str


def wilson(share: float, count: int) -> Interval:
    """The interval of a share in [0, 1] of `count` independent examples (Wilson, J. Am. Stat. Assoc. 22, 1927).

    It covers the variation between test sets of this size, not between training runs.
    """
    shrink = 1 + Z**2 / count
    centre = (share + Z**2 / (2 * count)) / shrink
    reach = Z / shrink * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = max(centre - reach, 0.0), min(centre + reach, 1.0)
    return Interval(0.0 if share == 0 else low, 1.0 if share == 1 else high, 'wilson')  # free of rounding


def normal(values: ArrayLike) -> Interval | None:
    """The interval of the mean of independent values [N], mean ± z·s/√N; None for a single value."""
    values = np.asarray(values, np.float64)
    if values.size < 2:
        return None
    mean, reach = values.mean(), Z * values.std(ddof=1) / math.sqrt(values.size)
    return Interval(float(mean - reach), float(mean + reach), 'normal')


def fisher(correlation: float, count: int) -> Interval | None:
    """The interval, by Fisher's z, of Spearman's rank correlation in [-1, 1] of `count` independent pairs.

    None if the correlation has no interval.

    The variance of z = artanh(correlation) is (1 + correlation² / 2) / (count - 3) (Bonett and Wright, Psychometrika
    65, 2000).
    """
    if count < 4 or abs(correlation) >= 1:
        return None
    z, reach = math.atanh(correlation), Z * _spread_of_z(correlation, count)
    return Interval(math.tanh(z - reach), math.tanh(z + reach), 'fisher')


def fisher_mean(correlations: Sequence[float], counts: Sequence[int]) -> Interval | None:
    """The interval of the mean of rank correlations, each as for `fisher`; None if one has no interval.

    The correlations are of independent sets of pairs. Where sets share pairs, as STS-B and STS12 to STS16 do, the
    interval is too narrow (docs/evaluation.md).

    The variance of a correlation is (1 - correlation²)² times that of its z, to first order.
    """
    pairs = list(zip(correlations, counts, strict=True))
    if any(fisher(*pair) is None for pair in pairs):
        return None
    variance = sum(((1 - value**2) * _spread_of_z(value, count)) ** 2 for value, count in pairs)
    mean, reach = sum(correlations) / len(pairs), Z * math.sqrt(variance) / len(pairs)
    return Interval(mean - reach, mean + reach, 'fisher')


def _spread_of_z(correlation: float, count: int) -> float:
    return math.sqrt((1 + correlation**2 / 2) / (count - 3))
