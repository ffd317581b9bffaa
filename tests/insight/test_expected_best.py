"""Bests are compared at an equal number of trials, with an interval that holds what it claims."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sweep.insight.expected_best import (
    Tried,
    difference_of_bests,
    equal_trials,
    expected_best,
    search_error,
)


def tried(n: int, scores: np.ndarray, k: int = 3, seed: int = 0) -> Tried:
    """Of n trials those with these mean scores completed, on k folds that differ."""
    noise = np.random.default_rng(seed).normal(size=(len(scores), k))
    noise -= noise.mean(axis=1, keepdims=True)
    return Tried(n, np.sort(scores)[:, None] + noise)


def by_drawing(found: Tried, m: int) -> np.ndarray:
    """The same by drawing every set of m of the n trials."""
    bests = [
        found.fold_scores[min(drawn)]
        for drawn in itertools.combinations(range(found.n), m)
        if min(drawn) < len(found.fold_scores)
    ]
    return np.mean(bests, axis=0)


@pytest.mark.parametrize(("n", "c"), [(1, 1), (4, 4), (7, 7), (7, 5), (9, 2)])
def test_the_expected_best_is_the_mean_over_all_draws(n: int, c: int) -> None:
    found = tried(n, np.random.default_rng(n).normal(size=c))
    for m in range(1, n + 1):
        np.testing.assert_allclose(expected_best(found, m), by_drawing(found, m), rtol=1e-12)


def test_the_best_of_all_is_the_best_and_of_one_the_mean() -> None:
    found = tried(6, np.arange(6.0))
    np.testing.assert_allclose(expected_best(found, 6), found.fold_scores[0])
    np.testing.assert_allclose(expected_best(found, 1), found.fold_scores.mean(axis=0))


def test_the_expected_best_of_uniform_scores_is_one_over_m_plus_one() -> None:
    """E min of m uniform numbers is 1 / (m + 1), however many they were drawn from."""
    rng = np.random.default_rng(0)
    for m in (1, 3, 10):
        found = [expected_best(tried(20, rng.uniform(size=20)), m).mean() for _ in range(4000)]
        assert np.mean(found) == pytest.approx(1 / (m + 1), abs=0.004)


def test_thousands_of_trials_overflow_nothing() -> None:
    found = tried(5000, np.linspace(0, 1, 4000))
    for m in (1, 2500, 5000):
        assert np.isfinite(expected_best(found, m)).all()
    assert 0 < (search_error(found, 2500) or 0.0) < 0.01


@pytest.mark.parametrize(("n", "c"), [(4, 4), (8, 5), (3, 2)])
def test_the_error_of_the_search_is_the_jackknife(n: int, c: int) -> None:
    found = tried(n, np.random.default_rng(n).normal(size=c))
    m = n // 2
    without = [
        expected_best(Tried(n - 1, np.delete(found.fold_scores, i, axis=0)), m).mean()
        for i in range(c)
    ]
    if n > c:
        without += [expected_best(Tried(n - 1, found.fold_scores), m).mean()] * (n - c)
    error = math.sqrt((n - 1) * np.var(without))
    assert search_error(found, m) == pytest.approx(error, rel=1e-12)


def test_more_trials_alone_make_no_cure_better() -> None:
    """Equal cures, one with eight times the trials: its best is better, the comparison is fair."""
    rng = np.random.default_rng(0)
    bests, fair = [], []
    for _ in range(400):
        few, many = tried(10, rng.normal(size=10)), tried(80, rng.normal(size=80))
        bests.append(many.fold_scores[0].mean() - few.fold_scores[0].mean())
        found = difference_of_bests(many, few, 0.5, 0.95)
        assert found is not None
        fair.append(found[0])
    assert np.mean(bests) < -0.7 and abs(np.mean(fair)) < 0.07


@pytest.mark.parametrize(("n", "others"), [(6, 6), (10, 80), (30, 30)])
@pytest.mark.parametrize("law", ["normal", "lognormal"])
def test_the_interval_holds_the_truth(n: int, others: int, law: str) -> None:
    """Two equal cures: the true difference is 0, whatever the numbers of trials."""
    rng, held, times = np.random.default_rng(1), 0, 300
    draw = rng.normal if law == "normal" else rng.lognormal
    for i in range(times):
        sides = [tried(k, draw(size=k), k=5, seed=i) for k in (n, others)]
        # A fold's own difficulty is the same for all, a model's luck on it is not.
        sides = [Tried(s.n, s.fold_scores + rng.normal(size=5)) for s in sides[:1]] + sides[1:]
        found = difference_of_bests(*sides, 0.25, 0.95)
        assert found is not None
        held += found[1] <= 0 <= found[2]
    assert held / times >= 0.93


def test_one_trial_against_one_is_told_by_the_folds_alone() -> None:
    one, other = Tried(1, np.array([[0.6, 0.64, 0.56]])), Tried(1, np.array([[0.5, 0.55, 0.45]]))
    d = one.fold_scores[0] - other.fold_scores[0]
    half = stats.t.ppf(0.975, 2) * math.sqrt((1 / 3 + 0.5) * d.var(ddof=1))
    found = difference_of_bests(one, other, 0.5, 0.95)
    assert found == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))


def test_what_cannot_be_told_is_not() -> None:
    one, two, ten = (tried(n, np.arange(float(n))) for n in (1, 2, 10))
    assert difference_of_bests(one, ten, 0.5, 0.95) is None
    assert difference_of_bests(tried(5, np.zeros(1)), ten, 0.5, 0.95) is None
    assert difference_of_bests(Tried(5, np.zeros((0, 0))), ten, 0.5, 0.95) is None
    assert difference_of_bests(two, tried(10, np.arange(10.0), k=4), 0.5, 0.95) is None
    assert difference_of_bests(tried(4, np.ones(4), k=1), ten, 0.5, 0.95) is None
    assert difference_of_bests(two, ten, 0.5, 0.95) is not None


def test_either_side_is_given_half_of_the_fewer_trials() -> None:
    sizes = [(1, 9, 1), (2, 9, 1), (9, 5, 2), (40, 40, 20)]
    for n, other, m in sizes:
        assert equal_trials(tried(n, np.zeros(1)), tried(other, np.zeros(1))) == m
