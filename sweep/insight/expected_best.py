"""What a search of fewer trials would have found: bests compared at an equal number of trials.

The best of many trials is better than the best of few, whatever was tried. So of either side the
expected best of equally many trials is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sweep.insight.selection import corrected_t_test


@dataclass(frozen=True)
class Tried:
    """`n` trials, of which some completed: their fold scores, the less the better, the best mean
    first. The others have no score and are worse than any.
    """

    n: int
    fold_scores: Float[np.ndarray, "C K"]


def expected_best(found: Tried, m: int) -> Float[np.ndarray, " K"]:
    r"""The fold scores of the best of `m` trials, in expectation; their mean is its score.

    Of all C(n, m) ways to draw m of the n trials, the i-th best is the best in C(n - i, m - 1):

        sum_i p_i s_i / sum_i p_i,    p_i = C(n - i, m - 1) / C(n, m),    i over those completed.

    The sum of p_i is the chance that some drawn trial completed. With m = n it is the best.
    Dodge, Gururangan, Card, Schwartz and Smith (2019), arXiv 1909.03004, who draw with
    replacement; without it, the estimate is unbiased: Tang et al. (2020), arXiv 2004.13705.
    """
    weights = _weights(found.n, m, len(found.fold_scores))
    return np.asarray(weights @ found.fold_scores / weights.sum())


def search_error(found: Tried, m: int) -> float | None:
    """The standard error that comes of which trials were run: the jackknife's, trial by trial.

    sqrt((n - 1) / n * sum_i (e_i - mean e)^2), e_i the expected best without trial i. Efron and
    Stein (1981), doi:10.1214/aos/1176345462: on average not too small, for m below n. None with
    fewer than two completed trials.
    """
    n, scores = found.n, found.fold_scores.mean(axis=1)
    c = len(scores)
    if c < 2 or m >= n:
        return None
    weights = _weights(n - 1, m, min(c, n - 1))
    # Without trial i, those before it keep their place and those after it move up by one.
    before, after = weights[: c - 1] * scores[:-1], weights[: c - 1] * scores[1:]
    before = np.concatenate([[0.0], np.cumsum(before)])
    after = np.concatenate([np.cumsum(after[::-1])[::-1], [0.0]])
    without = (before + after) / weights[: c - 1].sum()
    if n > c:
        same = float(weights @ scores / weights.sum())
        without = np.concatenate([without, np.full(n - c, same)])
    return math.sqrt((n - 1) / n * float(np.square(without - without.mean()).sum()))


def equal_trials(cure: Tried, other: Tried) -> int:
    """How many trials both are given: half of the fewer, for from all of them there is only one
    draw, and no telling what another would find.
    """
    return max(1, min(cure.n, other.n) // 2)


def difference_of_bests(
    cure: Tried, other: Tried, test_to_train: float, level: float
) -> tuple[float, float, float] | None:
    """(value, low, high): how much worse the expected best of `cure` scores than that of `other`.

    Two errors add up in squares: that of the folds, Nadeau's and Bengio's of the differences
    fold by fold, and that of the search on either side. The quantile is Student's with the degrees
    of freedom of Welch and Satterthwaite. One trial against one other is a comparison of these
    two, with the error of the folds alone. None where there are no two folds, not the same folds,
    or where one side has fewer than two completed trials.
    """
    if cure.fold_scores.shape[1:] != other.fold_scores.shape[1:]:
        return None
    k = cure.fold_scores.shape[1] if len(cure.fold_scores) and len(other.fold_scores) else 0
    if k < 2:
        return None
    m = equal_trials(cure, other)
    bests = expected_best(cure, m), expected_best(other, m)
    differences = [
        # What rounding could have made is no difference.
        0.0 if math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) else a - b
        for a, b in zip(*(best.tolist() for best in bests), strict=True)
    ]
    errors = [(corrected_t_test(differences, test_to_train)[0], k - 1)]
    if cure.n > 1 or other.n > 1:
        for side in (cure, other):
            error = search_error(side, m)
            if error is None:
                return None
            errors.append((error, side.n - 1))
    value = math.fsum(differences) / k
    variance = math.fsum(error**2 for error, _ in errors)
    if variance == 0:
        return value, value, value
    from scipy.special import stdtrit

    freedom = variance**2 / math.fsum(error**4 / degrees for error, degrees in errors)
    half = math.sqrt(variance) * float(stdtrit(freedom, (1 + level) / 2))
    return value, value - half, value + half


def _weights(n: int, m: int, c: int) -> Float[np.ndarray, " c"]:
    """p_i = C(n - i, m - 1) / C(n, m) of i = 1 ... c."""
    weights = [m / n]
    for i in range(1, c):
        weights.append(weights[-1] * (n - i - m + 1) / (n - i))
    return np.array(weights)
