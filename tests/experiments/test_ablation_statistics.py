import pytest
from scipy import stats

from experiments.ablation.statistics import Estimate, estimate, excludes_zero, paired


def test_by_hand():
    """Mean 2, s 1, t(0.975; 2) 4.302653: from a table."""
    found = estimate([1.0, 2.0, 3.0])
    assert found == pytest.approx((3, 2.0, 0.5773503, 2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert excludes_zero(found) is False
    assert excludes_zero(Estimate(3, -2.0, 0.1, -3.0, -1.0))


@pytest.mark.parametrize('n', [2, 5, 30])
def test_paired_agrees_with_scipy(n):
    rng = stats.norm(0.46, 0.01)
    ours = dict(enumerate(rng.rvs(n, random_state=0)))
    baseline = dict(enumerate(rng.rvs(n, random_state=1)))
    found = paired(ours, baseline)
    test = stats.ttest_rel(list(ours.values()), list(baseline.values()))
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.mean / found.error == pytest.approx(test.statistic)
    assert excludes_zero(found) == (test.pvalue < 0.05)


def test_pairs_are_those_of_the_same_seed():
    assert paired({3: 0.5, 1: 0.25, 7: 9.0}, {1: 0.125, 3: 0.25, 2: 9.0}).mean == pytest.approx(0.1875)


def test_few_values():
    assert estimate([]) is None
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert estimate([0.5]) == Estimate(1, 0.5, None, None, None)
    assert not excludes_zero(estimate([0.5]))
