"""95 % confidence intervals of what an evaluation reports."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


class Interval(NamedTuple):
    """From `low` to `high`, by `method`: 'wilson' or 'normal'."""

    low: float
    high: float
    method: str


def wilson(share: float, count: int) -> Interval:
    """Of a share in [0, 1] of `count` independent examples (Wilson, J. Am. Stat. Assoc. 22, 1927).

    It says how far another test set of this size would move the number, not another training run.
    """
    shrink = 1 + Z**2 / count
    centre = (share + Z**2 / (2 * count)) / shrink
    reach = Z / shrink * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return Interval(max(centre - reach, 0.0), min(centre + reach, 1.0), 'wilson')


def normal(values: ArrayLike) -> Interval | None:
    """Of the mean of independent values [N], mean ± z·s/√N; None for a single one."""
    values = np.asarray(values, np.float64)
    if values.size < 2:
        return None
    mean, reach = values.mean(), Z * values.std(ddof=1) / math.sqrt(values.size)
    return Interval(float(mean - reach), float(mean + reach), 'normal')
