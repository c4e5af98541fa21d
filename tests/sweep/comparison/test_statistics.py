"""Against scipy.stats and numpy."""

import math

import numpy as np
import pytest
from scipy import stats

from dlrun.sweep.comparison.statistics import estimate, estimate_difference


@pytest.mark.parametrize("n", [*range(2, 23), 30])
def test_mean_spread_and_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    summary = estimate(values.tolist())
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (summary.n, summary.mean, summary.std) == (
        n,
        pytest.approx(values.mean()),
        pytest.approx(values.std(ddof=1)),
    )
    assert (summary.low, summary.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_spread_and_none_no_mean() -> None:
    one, none = estimate([2.0]), estimate([])
    assert (one.n, one.mean) == (1, 2.0)
    assert all(map(math.isnan, (one.std, one.low, one.high, none.mean, none.std)))
    assert not one.contains_zero
    assert estimate([0.1] * 3).std == 0


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.2, 1.0])
def test_a_pair_is_told_apart_exactly_where_the_paired_t_test_does(shift: float) -> None:
    generator = np.random.default_rng(1)
    common, noise = generator.normal(0, 5, 6), generator.normal(0, 0.1, 6)
    a = dict(enumerate((common + noise + shift).tolist())) | {77: 1e9}
    b = dict(enumerate(common.tolist())) | {78: -1e9}
    difference = estimate_difference(a, b)
    tested = stats.ttest_rel([a[i] for i in range(6)], [b[i] for i in range(6)])
    interval = tested.confidence_interval(0.95)
    assert (difference.n, difference.low, difference.high) == (
        6,
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )
    assert difference.contains_zero == (tested.pvalue > 0.05)


def test_no_common_seed_is_no_difference() -> None:
    assert estimate_difference({0: 1.0}, {1: 1.0}).n == 0
