import numpy as np
import pytest
from scipy import stats

from dualcl_jax.evaluators.intervals import fisher, fisher_mean, normal, wilson


@pytest.mark.parametrize(('correct', 'count'), [(0, 10), (1, 7), (463, 1000), (10_000, 10_000)])
def test_wilson_agrees_with_scipy(correct, count):
    reference = stats.binomtest(correct, count).proportion_ci(0.95, method='wilson')
    low, high, method = wilson(correct / count, count)
    assert low == pytest.approx(reference.low, abs=1e-12)
    assert high == pytest.approx(reference.high, abs=1e-12)
    assert method == 'wilson'


def test_wilson_ends_at_0_and_1_exactly():
    """Rounding must not leave the share itself outside."""
    assert all(wilson(0.0, count).low == 0 and wilson(1.0, count).high == 1 for count in range(1, 300))


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


def correlated(rng, count, correlation):
    first, noise = rng.normal(size=(2, count))
    return first, correlation * first + np.sqrt(1 - correlation**2) * noise


def test_fisher_is_close_to_the_bootstrap():
    rng = np.random.default_rng(0)
    first, second = correlated(rng, 400, 0.7)
    value = stats.spearmanr(first, second).statistic
    drawn = []
    for _ in range(400):
        rows = rng.integers(400, size=400)
        drawn.append(stats.spearmanr(first[rows], second[rows]).statistic)
    low, high, method = fisher(value, 400)
    assert method == 'fisher'
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.02)


def test_fisher_covers_the_correlation_19_times_of_20():
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman's for a normal distribution with correlation 0.7
    values = [[stats.spearmanr(*correlated(rng, 60, 0.7)).statistic for _ in range(3)] for _ in range(500)]
    covered = np.mean([fisher(row[0], 60).low <= truth <= fisher(row[0], 60).high for row in values])
    assert covered == pytest.approx(0.95, abs=0.03)
    means = [fisher_mean(row, [60] * 3) for row in values]
    assert np.mean([low <= truth <= high for low, high, _ in means]) == pytest.approx(0.95, abs=0.03)


def test_fisher_by_hand():
    """artanh 0.9 = 1.472219, and the variance is (1 + 0.9² / 2) / 27 = 0.052037 (Bonett and Wright)."""
    low, high, _ = fisher(0.9, 30)
    assert low == pytest.approx(np.tanh(1.472219 - 1.959964 * np.sqrt(0.052037)), abs=1e-5)
    assert high == pytest.approx(np.tanh(1.472219 + 1.959964 * np.sqrt(0.052037)), abs=1e-5)
    assert [low, high] == pytest.approx([0.7720, 0.9578], abs=1e-3)


def test_fisher_of_too_few_pairs():
    assert fisher(0.5, 3) is None
    assert fisher(1.0, 10) is None
    assert fisher_mean([0.5, 0.5], [10, 3]) is None
