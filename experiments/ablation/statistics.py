"""Statistics of few runs: mean, standard error and interval of values or of differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """The mean of n independent values with its uncertainty, which is None for a single value.

    Attributes:
      n: number of values.
      mean: their mean.
      error: standard error s/√n, s with n - 1 degrees of freedom.
      low, high: Student's t interval of the mean, at `CONFIDENCE`. It assumes normally distributed values.
    """

    n: int
    mean: float
    error: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Estimates the mean of values that differ only by their seed; None without values."""
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(n, mean, None, None, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    reach = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
    return Estimate(n, mean, error, mean - reach, mean + reach)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """The mean difference of two arms over the seeds that both have; None if there is no such seed.

    A seed gives both arms the same initial encoder, order of images and views, so its common effect cancels.
    """
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


def excludes_zero(found: Estimate) -> bool:
    """Whether 0 lies outside the interval; False without an interval."""
    return found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
