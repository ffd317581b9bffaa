"""Intervals against published values and scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from sweep.insight.intervals import median_interval, newcombe, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (3, 10), (7, 7), (43, 256)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(k: int, n: int, level: float) -> None:
    expected = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k / n, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_of_no_trials_nothing_is_known() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("a", "m", "b", "n", "low", "high"),
    [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (10, 10, 0, 10, 0.6075, 1.0),
    ],
)
def test_newcombe_is_the_published_table(
    a: int, m: int, b: int, n: int, low: float, high: float
) -> None:
    """Newcombe (1998), table II, method 10."""
    assert newcombe(a / m, m, b / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [6, 7, 10, 20, 25, 100, 1500])
def test_the_medians_interval_is_the_narrowest_that_holds_it_surely(n: int) -> None:
    found = median_interval(list(range(1, n + 1)))
    assert found is not None
    low, high = found
    assert low + high == n + 1
    k = int(low)
    assert stats.binom.cdf(k - 1, n, 0.5) <= 0.025 < stats.binom.cdf(k, n, 0.5)


def test_fewer_than_six_values_hold_no_median_surely() -> None:
    assert [median_interval([1.0] * n) for n in range(6)] == [None] * 6
    assert math.isclose(1 - 2 * 0.5**6, 0.96875)
