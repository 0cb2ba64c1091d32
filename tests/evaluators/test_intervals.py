import numpy as np
import pytest
from scipy import stats

from dualcl_jax.evaluators.intervals import normal, wilson


@pytest.mark.parametrize(('correct', 'count'), [(0, 10), (1, 7), (463, 1000), (10_000, 10_000)])
def test_wilson_agrees_with_scipy(correct, count):
    reference = stats.binomtest(correct, count).proportion_ci(0.95, method='wilson')
    low, high, method = wilson(correct / count, count)
    assert low == pytest.approx(reference.low, abs=1e-12)
    assert high == pytest.approx(reference.high, abs=1e-12)
    assert method == 'wilson'


def test_normal_covers_the_mean_19_times_of_20():
    rng = np.random.default_rng(0)
    found = [normal(rng.normal(3.0, 2.0, 200)) for _ in range(2000)]
    covered = np.mean([low <= 3.0 <= high for low, high, _ in found])
    assert covered == pytest.approx(0.95, abs=0.02)
    low, high, _ = normal([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - 1.959963984540054 / np.sqrt(3))
    assert high == pytest.approx(2 + 1.959963984540054 / np.sqrt(3))


def test_one_value_has_no_interval():
    assert normal([0.5]) is None
