"""Intervals for shares, their differences, and medians: all in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, median

LEVEL = 0.95

Interval = tuple[float, float]


def wilson(share: float, n: float, level: float = LEVEL) -> Interval:
    """The score interval of a share seen in `n` trials; (0, 1) of none.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). Wilson (1927),
    doi:10.1080/01621459.1927.10502953. `n` may be an effective number, not whole.
    """
    if n <= 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At the ends the bound is 0 or 1 but for rounding.
    low = 0.0 if share == 0 else max(0.0, center - half)
    return low, 1.0 if share == 1 else min(1.0, center + half)


def newcombe(
    share: float, n: float, other: float, n_other: float, level: float = LEVEL
) -> Interval:
    """The interval of share - other, from the Wilson intervals (l, u) of both.

    d - sqrt((p - l)² + (u' - p')²) to d + sqrt((u - p)² + (p' - l')²): method 10 of Newcombe
    (1998), doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.
    """
    low, high = wilson(share, n, level)
    other_low, other_high = wilson(other, n_other, level)
    d = share - other
    return (
        d - math.hypot(share - low, other_high - other),
        d + math.hypot(high - share, other - other_low),
    )


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Order statistics that hold the median with probability `level` at least, whatever the law.

    The k-th least and the k-th greatest with the largest k for which P(Binomial(n, 1/2) < k) is
    at most (1 - level) / 2. None of fewer than six values at 0.95, which cannot hold it so surely.
    """
    ordered, n = sorted(values), len(values)
    tail, k = 0.0, 0
    while k < n:
        tail += math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        )
        if tail > (1 - level) / 2:
            break
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else None


def median_of(values: Sequence[float]) -> float | None:
    """The median; None of no values."""
    return median(values) if values else None
