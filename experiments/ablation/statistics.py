"""Statistics of few runs: a mean, its standard error and its interval, of values or of differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """The mean of n independent values; the rest is None where there is one value alone.

    Attributes:
      n: how many.
      mean: of them.
      error: standard error s/√n, s with n - 1 degrees of freedom.
      low, high: Student's t interval of the mean, at `CONFIDENCE`. It takes the values for normal.
    """

    n: int
    mean: float
    error: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Of values that differ by their seed alone; None where there is none."""
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
    """The mean difference of two arms over the seeds that both have; None where there is no such seed.

    A seed gives both the same initial encoder, order of images and views: what it does to both falls out.
    """
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


def excludes_zero(found: Estimate) -> bool:
    """Whether 0 lies outside of the interval; False where there is none."""
    return found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
