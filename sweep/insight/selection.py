"""Which regularizer and lambda the folds speak for, and whether they can tell at all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweep.insight.stored import StoredStudy, is_diverged

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Candidate:
    """A COMPLETE trial: score is the mean of its K fold scores, score_se std(ddof=1) / sqrt(K)."""

    number: int
    regularizer: str
    lam: float | None
    score: float
    score_se: float | None
    fold_scores: tuple[float, ...]
    params: dict[str, Any]
    nonzero: float | None
    """Nonzero weights, the mean over folds."""


@dataclass(frozen=True)
class Choice:
    """What was found with one regularizer.

    `best` has the best score (of equal ones the largest lambda), `strongest` the largest lambda
    among the trials whose score is within one standard error of it (lambda.1se).
    """

    regularizer: str
    n_trials: int
    n_complete: int
    n_diverged: int
    best: Candidate | None
    strongest: Candidate | None


@dataclass(frozen=True)
class Comparison:
    """The best trial of a regularizer against the best trial of all, fold by fold.

    `worse_by` is how much worse its mean score is and `se` the standard error of that, corrected
    for overlapping training rows; p is the t-test's, p_holm the same adjusted for the number of
    comparisons.
    """

    regularizer: str
    number: int
    worse_by: float
    se: float
    p: float
    p_holm: float
    within_one_se: bool

    @property
    def told_apart(self) -> bool:
        """Worse by more than one standard error, and by more than chance explains."""
        return self.p_holm < SIGNIFICANT and not self.within_one_se


def candidates(study: StoredStudy) -> list[Candidate]:
    """The COMPLETE trials that have a finite score, by number."""
    found = []
    for trial in study.trials:
        if trial.state != TrialState.COMPLETE or trial.value is None:
            continue
        if not math.isfinite(trial.value):
            continue
        regularizer, lam = penalty(study, trial)
        attrs = trial.user_attrs
        folds = tuple(float(score) for score in attrs.get("fold_scores") or ())
        nonzero = attrs.get("nonzero") or None
        found.append(
            Candidate(
                number=trial.number,
                regularizer=regularizer,
                lam=lam,
                score=trial.value,
                score_se=_standard_error(folds),
                fold_scores=folds,
                params=dict(trial.params),
                nonzero=statistics.fmean(nonzero) if nonzero else None,
            )
        )
    return found


def choices(study: StoredStudy) -> list[Choice]:
    """One for each regularizer that was tried, the best first."""
    by_name: dict[str, list[Candidate]] = {}
    for candidate in candidates(study):
        by_name.setdefault(candidate.regularizer, []).append(candidate)
    tried: dict[str, list[FrozenTrial]] = {}
    for trial in study.trials:
        tried.setdefault(penalty(study, trial)[0], []).append(trial)
    found = []
    for name, trials in tried.items():
        complete = by_name.get(name, [])
        best = best_of(complete, study.direction)
        found.append(
            Choice(
                regularizer=name,
                n_trials=len(trials),
                n_complete=len(complete),
                n_diverged=sum(map(is_diverged, trials)),
                best=best,
                strongest=strongest_of(complete, best, study.direction),
            )
        )
    sign = _sign(study.direction)
    return sorted(
        found, key=lambda c: (c.best is None, sign * c.best.score if c.best else 0.0, c.regularizer)
    )


def best_of(complete: Sequence[Candidate], direction: str) -> Candidate | None:
    """The best score; of equal ones the largest lambda, then the least number."""
    sign = _sign(direction)
    key = lambda c: (sign * c.score, -(c.lam or 0.0), c.number)  # noqa: E731
    return min(complete, key=key, default=None)


def strongest_of(
    complete: Sequence[Candidate], best: Candidate | None, direction: str
) -> Candidate | None:
    """The largest lambda whose score is at most one standard error of `best` worse than it.

    Breiman, Friedman, Olshen and Stone (1984), section 3.4.3; glmnet's lambda.1se. Of equal
    lambdas the best score. None where there is no lambda or no standard error.
    """
    if best is None or best.lam is None or best.score_se is None:
        return None
    sign = _sign(direction)
    limit = sign * best.score + best.score_se
    within = [c for c in complete if c.lam is not None and sign * c.score <= limit]
    return max(within, key=lambda c: (c.lam or 0.0, -sign * c.score, -c.number))


def compare(study: StoredStudy, found: Sequence[Choice]) -> list[Comparison]:
    """Every other regularizer's best trial against the best of all, worst last.

    Holm (1979) adjusts the p-values for their number: the i-th smallest of m is multiplied by
    m - i + 1, and none is below one before it.
    """
    bests = [choice.best for choice in found if choice.best is not None]
    if len(bests) < 2:
        return []
    winner, *others = bests
    sign, ratio = _sign(study.direction), test_share(study)
    raw = []
    for other in others:
        differences = paired_differences(study.direction, other, winner)
        if differences is not None:
            raw.append((other, *corrected_t_test(differences, ratio)))
    adjusted: dict[int, float] = {}
    least = 0.0
    for i, (other, _, p) in enumerate(sorted(raw, key=lambda test: test[2])):
        least = max(least, min(1.0, (len(raw) - i) * p))
        adjusted[other.number] = least
    return [
        Comparison(
            regularizer=other.regularizer,
            number=other.number,
            worse_by=sign * (other.score - winner.score),
            se=se,
            p=p,
            p_holm=adjusted[other.number],
            within_one_se=sign * (other.score - winner.score) <= (winner.score_se or 0.0),
        )
        for other, se, p in raw
    ]


def paired_differences(
    direction: str, candidate: Candidate, other: Candidate
) -> list[float] | None:
    """How much worse `candidate` is than `other` on each fold; None if these are not the same."""
    if len(candidate.fold_scores) != len(other.fold_scores):
        return None
    sign = _sign(direction)
    return [
        # What rounding could have made is no difference.
        0.0 if math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) else sign * (a - b)
        for a, b in zip(candidate.fold_scores, other.fold_scores, strict=True)
    ]


def corrected_t_test(differences: Sequence[float], test_to_train: float) -> tuple[float, float]:
    """(se, p) of the mean of K paired differences of scores on resampled folds; p is two-sided.

    se = sqrt((1/K + n_test/n_train) var(d)), t = mean(d) / se, K - 1 degrees of freedom: training
    sets overlap, so plain 1/K is too small. Nadeau and Bengio (2003),
    doi:10.1023/A:1024068626366.
    """
    n = len(differences)
    if n < 2:
        return 0.0, 1.0
    mean, variance = statistics.fmean(differences), statistics.variance(differences)
    se = math.sqrt((1 / n + test_to_train) * variance)
    if se == 0:
        return se, 1.0 if mean == 0 else 0.0
    from scipy.special import stdtr

    return se, float(2 * stdtr(n - 1, -abs(mean / se)))


def test_share(study: StoredStudy) -> float:
    """n_test / n_train of the study's folds, where they are of equal size.

    1 / (folds - 1) for k-fold, repeated or not; the mean over the splits of a time series, whose
    i-th trains on i blocks and tests on one.
    """
    settings = study.attrs.get("spec", {}).get("cross_validation", {})
    folds = int(settings.get("folds") or 5)
    kind = settings.get("kind")
    if kind == "column":
        folds = len(study.attrs.get("data", {}).get("folds") or []) or folds
    if kind == "time_series":
        return statistics.fmean(1 / i for i in range(1, folds + 1))
    return 1 / max(1, folds - 1)


def penalty(study: StoredStudy, trial: FrozenTrial) -> tuple[str, float | None]:
    """(regularizer, lambda) of a trial, fixed or varied; no lambda without a regularizer."""
    knobs = {**study.fixed, **trial.params}
    regularizer = str(knobs.get("regularizer") or "none")
    lam = knobs.get("lambda")
    return regularizer, None if regularizer == "none" or lam is None else float(lam)


def _standard_error(scores: Sequence[float]) -> float | None:
    if len(scores) < 2:
        return None
    return statistics.stdev(scores) / math.sqrt(len(scores))


def _sign(direction: str) -> int:
    """Times which a score is the smaller the better."""
    return -1 if direction == "maximize" else 1
