"""How many trials failed, why, and in which part of the space training exploded."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweep.insight.stored import StoredStudy, failure, is_diverged

LEAST_TRIALS = 3
CLEAR = 0.5


@dataclass(frozen=True)
class Region:
    """A part of one knob's range: `above` or `below` a value (both inclusive), or `is` a choice.

    Of `n_diverged` diverged trials `n_inside` lie in it, and `n_others_inside` of the `n_others`
    that did not diverge.
    """

    knob: str
    where: str
    value: Any
    n_inside: int
    n_diverged: int
    n_others_inside: int
    n_others: int


def failures(study: StoredStudy) -> Counter[str]:
    """How many trials failed for each reason."""
    found: Counter[str] = Counter()
    for trial in study.trials:
        if trial.state == TrialState.FAIL:
            why = failure(trial)
            found[str(why.get("reason") or why.get("kind") or "unknown")] += 1
    return found


def where_it_diverged(study: StoredStudy) -> Region | None:
    """The region of one knob that best separates diverged trials from the rest, if any does.

    It maximises (share of diverged trials inside) - (share of the others inside), Youden's J
    (1950); None when that is below 0.5, or with fewer than three diverged trials.
    """
    diverged = [trial for trial in study.trials if is_diverged(trial)]
    others = [
        trial for trial in study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    if len(diverged) < LEAST_TRIALS or not others:
        return None
    best: tuple[float, Region] | None = None
    for knob in study.varied:
        for region in _regions(knob, diverged, others):
            clear = region.n_inside / region.n_diverged - region.n_others_inside / region.n_others
            if best is None or clear > best[0]:
                best = clear, region
    return best[1] if best and best[0] >= CLEAR else None


def _regions(knob: str, diverged: list[FrozenTrial], others: list[FrozenTrial]) -> list[Region]:
    bad = [trial.params[knob] for trial in diverged if knob in trial.params]
    good = [trial.params[knob] for trial in others if knob in trial.params]
    if len(set(map(repr, bad + good))) < 2:
        return []
    n_bad, n_good = len(diverged), len(others)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in bad + good):
        return [
            Region(knob, "is", value, bad.count(value), n_bad, good.count(value), n_good)
            for value in {repr(v): v for v in bad}.values()
        ]
    bad.sort()
    good.sort()
    regions = []
    # The ends of a region are values that were tried: nothing is claimed of what lies between.
    for value in dict.fromkeys(bad):
        above = len(bad) - bisect_left(bad, value), len(good) - bisect_left(good, value)
        below = bisect_right(bad, value), bisect_right(good, value)
        regions.append(Region(knob, "above", value, above[0], n_bad, above[1], n_good))
        regions.append(Region(knob, "below", value, below[0], n_bad, below[1], n_good))
    return regions
