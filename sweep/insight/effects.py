"""What keeps training stable, and at what cost in score: the cures beside each other."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sweep.insight.cures import GRADIENT_CURES, NONE, cure_of, knobs_of, order_of, positive
from sweep.insight.expected_best import Tried, difference_of_bests, equal_trials
from sweep.insight.intervals import LEVEL, median_interval, median_of, newcombe, wilson
from sweep.insight.selection import (
    Candidate,
    best_of,
    candidates,
    test_share,
)
from sweep.insight.stored import StoredStudy, is_diverged

MOST_STRATA, TRIALS_A_STRATUM = 10, 20


class Estimate(NamedTuple):
    """A value and the interval that holds it, with those of all other cures, at 95%."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Effect:
    """One cure. `share` of its trials diverged; `best` and `median` are of those that completed.

    `against_none` is its share less that of `none` at equal learning rates, `cost` how much worse
    the expected best of `cost_trials` of its trials scores than that of as many of `none`; None
    where nothing can be compared.
    """

    cure: str
    trials: int
    diverged: int
    share: float
    share_interval: tuple[float, float]
    best: Candidate | None
    median: float | None
    median_interval: tuple[float, float] | None
    against_none: Estimate | None
    cost: Estimate | None
    cost_trials: int | None


@dataclass(frozen=True)
class Effects:
    """All cures that were tried, `none` first; `strata` bins of learning rate were compared within.

    `unmatched` names further knobs that vary; `left_out` trials failed without diverging.
    """

    study: str
    direction: str
    score: str
    effects: tuple[Effect, ...]
    strata: int
    unmatched: tuple[str, ...]
    left_out: int
    n_folds: int

    @property
    def n_trials(self) -> int:
        return sum(effect.trials for effect in self.effects)

    @property
    def n_diverged(self) -> int:
        return sum(effect.diverged for effect in self.effects)

    def rows(self) -> list[dict[str, Any]]:
        """A row a cure, as JSON values."""
        found = []
        for each in self.effects:
            best, against, cost = each.best, each.against_none, each.cost
            middle = each.median_interval or (None, None)
            values = (
                *(each.cure, each.trials, each.diverged, each.share, *each.share_interval),
                *(against or (None, None, None)),
                *(best.score if best else None, best.number if best else None),
                *(cost or (None, None, None)),
                each.cost_trials,
                *(each.median, *middle),
            )
            found.append(dict(zip(COLUMNS, values, strict=True)))
        return found


COLUMNS = (
    *("cure", "trials", "diverged", "share", "share_low", "share_high"),
    *("against_none", "against_none_low", "against_none_high", "best", "best_trial"),
    *("cost", "cost_low", "cost_high", "cost_trials", "median", "median_low", "median_high"),
)


class _Seen(NamedTuple):
    """Of a cure in one stratum: its trials, and how many of them diverged."""

    trials: int
    diverged: int


def effects(study: StoredStudy) -> Effects:
    """Every cure that was tried, compared with `none`; from COMPLETE, PRUNED and diverged trials.

    A pruned trial counts as one that did not diverge.
    """
    tried: dict[str, list[tuple[FrozenTrial, float]]] = {}
    for trial in study.trials:
        if trial.state == TrialState.FAIL and not is_diverged(trial):
            continue
        knobs = knobs_of(study, trial)
        rate = positive(knobs.get("learning_rate")) or 0.0
        tried.setdefault(cure_of(knobs), []).append((trial, rate))
    edges = strata_of([rate for trials in tried.values() for _, rate in trials])
    names = sorted(tried, key=order_of)
    scored = {candidate.number: candidate for candidate in candidates(study)}
    complete = {
        name: [scored[t.number] for t, _ in tried[name] if t.number in scored] for name in names
    }
    bests = {name: best_of(complete[name], study.direction) for name in names}
    # Bonferroni: all comparisons with `none` hold together.
    level = 1 - (1 - LEVEL) / max(1, len(names) - 1)
    seen = {name: _by_stratum(tried[name], edges) for name in names}
    searched = {name: _tried(len(tried[name]), complete[name], study.direction) for name in names}
    found = []
    for name in names:
        n, n_diverged = len(tried[name]), sum(is_diverged(trial) for trial, _ in tried[name])
        scores = [candidate.score for candidate in complete[name]]
        compared = name != NONE and NONE in tried
        cost = None
        if compared:
            cost = difference_of_bests(searched[name], searched[NONE], test_share(study), level)
        found.append(
            Effect(
                cure=name,
                trials=n,
                diverged=n_diverged,
                share=n_diverged / n,
                share_interval=wilson(n_diverged / n, n),
                best=bests[name],
                median=median_of(scores),
                median_interval=median_interval(scores),
                against_none=difference(seen[name], seen[NONE], level) if compared else None,
                cost=Estimate(*cost) if cost else None,
                cost_trials=equal_trials(searched[name], searched[NONE]) if cost else None,
            )
        )
    best = best_of([c for each in complete.values() for c in each], study.direction)
    matched = {"regularizer", "lambda", "l1_ratio", "learning_rate", *GRADIENT_CURES}
    return Effects(
        study=study.name,
        direction=study.direction,
        score=study.score,
        effects=tuple(found),
        strata=len(edges) + 1,
        unmatched=tuple(name for name in study.varied if name not in matched),
        left_out=len(study.trials) - sum(map(len, tried.values())),
        n_folds=len(best.fold_scores) if best else 0,
    )


def strata_of(rates: Sequence[float]) -> list[float]:
    """The inner edges of bins that hold equally many of the rates, at least 20 each, at most ten.

    Ten leave hardly anything of a difference in learning rates: five already take 90% of it away
    (Cochran 1968, doi:10.2307/2528036). Few different rates are a bin each.
    """
    ordered, distinct = sorted(rates), sorted(set(rates))
    if len(distinct) <= MOST_STRATA and len(distinct) * 2 <= len(rates):
        return distinct[1:]
    n = max(1, min(MOST_STRATA, len(ordered) // TRIALS_A_STRATUM))
    edges = [ordered[len(ordered) * i // n] for i in range(1, n)]
    return sorted({edge for edge in edges if edge > ordered[0]})


def difference(
    cure: Mapping[int, _Seen], none: Mapping[int, _Seen], level: float = LEVEL
) -> Estimate | None:
    """The share that diverged with the cure, less that without one, within strata.

    sum_k w_k (p_1k - p_0k) with w_k ~ n_1k n_0k / (n_1k + n_0k), the weights of Mantel and Haenszel
    (1959, doi:10.1093/jnci/22.4.719). The interval is Newcombe's, of the two weighted shares and
    their effective numbers of trials 1 / sum_k w_k² / n_k (Kish 1965). None without a stratum that
    holds trials of both.
    """
    both = [k for k in cure if k in none]
    raw = [cure[k].trials * none[k].trials / (cure[k].trials + none[k].trials) for k in both]
    if not raw:
        return None
    weights = [weight / sum(raw) for weight in raw]
    (p, n), (p_none, n_none) = _weighted(cure, both, weights), _weighted(none, both, weights)
    return Estimate(p - p_none, *newcombe(p, n, p_none, n_none, level))


def _weighted(
    seen: Mapping[int, _Seen], strata: Sequence[int], weights: Sequence[float]
) -> tuple[float, float]:
    pairs = list(zip(strata, weights, strict=True))
    share = math.fsum(w * seen[k].diverged / seen[k].trials for k, w in pairs)
    return min(1.0, share), 1 / math.fsum(w * w / seen[k].trials for k, w in pairs)


def _by_stratum(
    trials: Sequence[tuple[FrozenTrial, float]], edges: Sequence[float]
) -> dict[int, _Seen]:
    found: dict[int, _Seen] = {}
    for trial, rate in trials:
        k = bisect_right(edges, rate)
        n, diverged = found.get(k, _Seen(0, 0))
        found[k] = _Seen(n + 1, diverged + is_diverged(trial))
    return found


def _tried(n: int, complete: Sequence[Candidate], direction: str) -> Tried:
    """The completed ones of n trials by their scores, turned so that less is better."""
    sign = -1 if direction == "maximize" else 1
    ordered = sorted(complete, key=lambda c: (sign * c.score, c.number))
    folds = {len(candidate.fold_scores) for candidate in ordered}
    if len(folds) != 1:
        return Tried(n, np.zeros((len(ordered), 0)))
    return Tried(n, sign * np.array([candidate.fold_scores for candidate in ordered]))
