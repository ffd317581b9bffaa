"""The stability map: where over learning rate and lambda training explodes, from stored trials."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweep.errors import RequestError
from sweep.insight.bound import exploding_rate, no_bound
from sweep.insight.cures import (
    UNCLIPPED,
    clipping_text,
    gradient_cures_of,
    knobs_of,
    penalty_of,
    positive,
)
from sweep.insight.intervals import wilson
from sweep.insight.stored import StoredStudy, failure, is_diverged
from sweep.insight.words import value_text

RATE_BINS, LAMBDA_BINS = 6, 4
MOST_DISTINCT = 8
"""Up to so many different values, each is a bin of its own."""
MOST_CLIPPINGS = 4
"""With more, trials are told apart by which of the clippings they had, and not by its value."""

Bin = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A finished trial on the map; `outcome` is complete, pruned, or why it diverged.

    `lam` is None without a regularizer; `bound` is the rate above which it must diverge, if known.
    """

    number: int
    rate: float
    lam: float | None
    outcome: str
    diverged: bool
    score: float | None
    bound: float | None


@dataclass(frozen=True)
class Panel:
    """The trials with one regularizer and one clipping; without a lambda it has one row.

    `bound_at` gives the exploding rate at a lambda, where it is the same for all of its trials.
    """

    regularizer: str
    clipping: str
    points: tuple[Point, ...]
    bound_at: Callable[[float | None], float | None]

    @property
    def has_lambda(self) -> bool:
        return any(point.lam is not None for point in self.points)

    @property
    def n_diverged(self) -> int:
        return sum(point.diverged for point in self.points)


@dataclass(frozen=True)
class Cell:
    """Trials of a panel within a bin of learning rates and one of lambdas (None: no lambda)."""

    panel: Panel
    rates: Bin
    lams: Bin | None
    trials: int
    diverged: int


@dataclass(frozen=True)
class StabilityMap:
    """All panels, in bins that they share.

    `left_out` trials failed without diverging, or have no learning rate above 0.
    """

    study: str
    score: str
    panels: tuple[Panel, ...]
    rate_bins: tuple[Bin, ...]
    lambda_bins: tuple[Bin, ...]
    left_out: int
    no_bound: str | None

    @property
    def points(self) -> list[Point]:
        return [point for panel in self.panels for point in panel.points]

    def cells(self, panel: Panel) -> list[Cell]:
        """By lambda from the greatest, then by learning rate from the least; also empty ones."""
        trials: Counter[tuple[int, int]] = Counter()
        diverged: Counter[tuple[int, int]] = Counter()
        for point in panel.points:
            lam = 0 if point.lam is None else _bin_of(point.lam, self.lambda_bins)
            place = lam, _bin_of(point.rate, self.rate_bins)
            trials[place] += 1
            diverged[place] += point.diverged
        rows: list[tuple[int, Bin | None]] = [(0, None)]
        if panel.has_lambda:
            rows = list(reversed(list(enumerate(self.lambda_bins))))
        return [
            Cell(panel, rates, lams, trials[i, j], diverged[i, j])
            for i, lams in rows
            for j, rates in enumerate(self.rate_bins)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """The cells that hold trials, as JSON values; the share's interval is Wilson's, at 95%."""
        found = []
        for panel in self.panels:
            for cell in self.cells(panel):
                if not cell.trials:
                    continue
                share = cell.diverged / cell.trials
                low, high = wilson(share, cell.trials)
                values = (
                    *(panel.regularizer, panel.clipping, *(cell.lams or (None, None))),
                    *(*cell.rates, cell.trials, cell.diverged, share, low, high),
                    panel.bound_at(middle(cell.lams)),
                )
                found.append(dict(zip(COLUMNS, values, strict=True)))
        return found

    def bound_text(self) -> str:
        """How the trials agree with the bound, or why there is none."""
        known = [point for point in self.points if point.bound is not None]
        if not known:
            why = self.no_bound or "every trial that it is for had its gradient clipped"
            return f"No analytic bound: {why}."
        above = [point for point in known if point.bound is not None and point.rate > point.bound]
        n_above, n_below = len(above), len(known) - len(above)
        d_above = sum(point.diverged for point in above)
        d_below = sum(point.diverged for point in known) - d_above
        return (
            f"Bound 2 (1 + momentum) / (h + lambda) of unclipped gradient descent: {d_above} of "
            f"the {n_above} trials above it diverged, {d_below} of the {n_below} below."
        )


COLUMNS = (
    *("regularizer", "clipping", "lambda_low", "lambda_high"),
    *("learning_rate_low", "learning_rate_high", "trials", "diverged", "share"),
    *("share_low", "share_high", "bound"),
)


def stability_map(study: StoredStudy) -> StabilityMap:
    """The map of a study's COMPLETE, PRUNED and diverged trials.

    Raises RequestError where `learning_rate` does not vary.
    """
    described = [(trial, knobs_of(study, trial)) for trial in study.trials]
    if described and not any("learning_rate" in trial.params for trial, _ in described):
        if "learning_rate" not in study.fixed:
            raise RequestError(f"Study {study.name!r} has no learning_rate to draw a map over.")
        raise RequestError(
            f"All trials of {study.name!r} have learning_rate "
            f"{value_text(study.fixed['learning_rate'])}: a map needs one that varies, as in "
            "learning_rate: {low: 0.001, high: 1, log: true}."
        )
    coarse = len({clipping_text(knobs) for _, knobs in described}) > MOST_CLIPPINGS
    known = no_bound(study)
    panels: dict[tuple[str, str], list[tuple[Point, dict[str, Any]]]] = {}
    for trial, knobs in described:
        point = _point(trial, knobs, None if known else exploding_rate(study, knobs))
        if point is not None:
            clipping = clipping_text(knobs)
            if coarse:
                clipping = " and ".join(gradient_cures_of(knobs)) or UNCLIPPED
            panels.setdefault((penalty_of(knobs)[0], clipping), []).append((point, knobs))
    points = [point for found in panels.values() for point, _ in found]
    order = sorted(panels, key=lambda key: (key[0] != "none", key[0], key[1] != UNCLIPPED, key[1]))
    return StabilityMap(
        study=study.name,
        score=study.score,
        panels=tuple(
            Panel(*key, tuple(point for point, _ in panels[key]), _bound_at(study, panels[key]))
            for key in order
        ),
        rate_bins=_bins([point.rate for point in points], RATE_BINS),
        lambda_bins=_bins([point.lam for point in points if point.lam is not None], LAMBDA_BINS),
        left_out=len(described) - len(points),
        no_bound=known,
    )


def _point(trial: FrozenTrial, knobs: Mapping[str, Any], bound: float | None) -> Point | None:
    """None of a trial that failed otherwise than by diverging, or without a learning rate."""
    rate, fails = positive(knobs.get("learning_rate")), trial.state == TrialState.FAIL
    if rate is None or (fails and not is_diverged(trial)):
        return None
    return Point(
        number=trial.number,
        rate=rate,
        lam=penalty_of(knobs)[1],
        outcome=str(failure(trial).get("reason")) if fails else trial.state.name.lower(),
        diverged=fails,
        score=trial.value if trial.state == TrialState.COMPLETE else None,
        bound=bound,
    )


def middle(bounds: Bin | None) -> float | None:
    """The middle of a bin on a logarithmic axis."""
    return None if bounds is None else math.sqrt(bounds[0] * bounds[1])


def _bins(values: Sequence[float], n: int) -> tuple[Bin, ...]:
    """Each value by itself if they are few; else `n` of equal width on a logarithmic axis."""
    distinct = sorted(set(values))
    if len(distinct) <= MOST_DISTINCT:
        return tuple((value, value) for value in distinct)
    low, ratio = distinct[0], (distinct[-1] / distinct[0]) ** (1 / n)
    edges = [low, *(low * ratio**i for i in range(1, n)), distinct[-1]]
    return tuple(itertools.pairwise(edges))


def _bin_of(value: float, bins: Sequence[Bin]) -> int:
    return bisect_right(bins, value, key=lambda bounds: bounds[0]) - 1


def _bound_at(
    study: StoredStudy, found: Sequence[tuple[Point, dict[str, Any]]]
) -> Callable[[float | None], float | None]:
    """The bound over lambda, if no other knob that varies changes it within the panel."""
    knobs = found[0][1]

    def at(lam: float | None) -> float | None:
        given = knobs if lam is None else {**knobs, "lambda": lam}
        return exploding_rate(study, given)

    same = all(
        point.bound is not None and math.isclose(point.bound, at(point.lam) or 0.0)
        for point, _ in found
    )
    return at if same else lambda lam: None
