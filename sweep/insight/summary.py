"""The summary of a study: what was found, how sure that is, and where training exploded."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import TrialState

from sweep.insight.divergence import Region, failures, where_it_diverged
from sweep.insight.selection import Candidate, Choice, Comparison, choices, compare, test_share
from sweep.insight.stored import StoredStudy, is_diverged
from sweep.insight.words import conjunction, number


@dataclass(frozen=True)
class Summary:
    """What the folds say; `choices` and `comparisons` start with the best regularizer."""

    study: str
    direction: str
    score: str
    n_trials: int
    n_complete: int
    n_pruned: int
    n_diverged: int
    failed: Counter[str]
    choices: list[Choice]
    comparisons: list[Comparison]
    n_folds: int
    test_to_train: float
    region: Region | None
    optimistic: bool
    """Early stopping looked at the scored fold."""
    own_modules: tuple[str, ...] = ()

    @property
    def best(self) -> Candidate | None:
        return self.choices[0].best if self.choices else None

    @property
    def clear_winner(self) -> str | None:
        """The regularizer that every other one was told apart from, if there is one."""
        if not self.comparisons or self.best is None:
            return None
        apart = all(comparison.told_apart for comparison in self.comparisons)
        return self.best.regularizer if apart else None

    def best_text(self) -> str:
        """`log_loss 0.0912 ± 0.0061 (trial 54)`"""
        best = self.best
        if best is None:
            return "No trial has completed."
        se = "" if best.score_se is None else f" ± {number(best.score_se, 2)}"
        return f"{self.score} {number(best.score)}{se} (trial {best.number})"

    def verdict(self) -> str:
        """Whether the regularizers can be told apart, in words."""
        best = self.best
        if best is None:
            return "No trial has completed, so nothing can be compared."
        if not self.comparisons:
            return f"{_name(best.regularizer)} is the only regularizer tried: nothing to compare."
        same = [c for c in self.comparisons if not c.told_apart]
        worse = [c for c in self.comparisons if c.told_apart]
        if not same:
            p = max(c.p_holm for c in worse)
            return (
                f"{_name(best.regularizer)} is the clear winner: it beats {_names(worse)} by "
                f"more than the folds differ (p {_p(p)})."
            )
        gaps = conjunction([f"{_name(c.regularizer)} ({_gap(c)})" for c in same])
        text = (
            f"No clear winner: {_name(best.regularizer)} scored best, but the folds cannot tell "
            f"it from {gaps}."
        )
        if worse:
            p = max(c.p_holm for c in worse)
            text += f" Worse than it: {_names(worse)} (p {_p(p)})."
        return text

    def method(self) -> str:
        """How the verdict was reached."""
        return (
            f"Paired t-test on {self.n_folds} fold scores, corrected for overlapping training "
            f"rows (Nadeau and Bengio 2003, n_test/n_train {number(self.test_to_train)}), "
            f"Holm over {len(self.comparisons)} "
            f"{'comparison' if len(self.comparisons) == 1 else 'comparisons'}."
        )

    def divergence_text(self) -> str:
        """How many trials failed, why, and where training exploded."""
        if not self.failed:
            return "No trial failed."
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.failed.most_common())
        text = f"{self.failed.total()} of {self.n_trials} trials failed: {reasons}."
        region = self.region
        if region is not None:
            inside = f"{region.n_inside} of the {region.n_diverged}"
            if region.n_inside == region.n_diverged:
                inside = f"All {region.n_diverged}"
            rest = f"so did {region.n_others_inside} of the {region.n_others} that did not diverge"
            if region.n_others_inside == 0:
                rest = f"none of the {region.n_others} others did"
            text += f" {inside} that diverged had {region_text(region)}; {rest}."
        return text

    def commands(self, storage: str | None = None) -> list[str]:
        """Where to look further, in the database at `storage` (None: the default)."""
        name = shlex.quote(self.study)
        where = "" if storage is None else f" --storage {shlex.quote(storage)}"
        found = [f"sweep trials {name} --sort {'-' * (self.direction == 'maximize')}score"]
        if self.failed:
            found.append(f"sweep diverged {name}")
        if self.best is not None:
            allow = "".join(f" --allow {module}" for module in self.own_modules)
            found.append(f"sweep replay {name} {self.best.number}{allow}")
        return [command + where for command in (*found, "sweep dashboard")]

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return {
            "study": self.study,
            "direction": self.direction,
            "score": self.score,
            "trials": self.n_trials,
            "complete": self.n_complete,
            "pruned": self.n_pruned,
            "failed": self.failed.total(),
            "diverged": self.n_diverged,
            "failed_by_reason": dict(self.failed.most_common()),
            "best": _candidate(self.best),
            "regularizers": [
                {
                    "regularizer": choice.regularizer,
                    "trials": choice.n_trials,
                    "complete": choice.n_complete,
                    "diverged": choice.n_diverged,
                    "best": _candidate(choice.best),
                    "lambda_1se": choice.strongest.lam if choice.strongest else None,
                    "strongest": _candidate(choice.strongest),
                }
                for choice in self.choices
            ],
            "comparisons": [
                {**asdict(comparison), "told_apart": comparison.told_apart}
                for comparison in self.comparisons
            ],
            "clear_winner": self.clear_winner,
            "verdict": self.verdict(),
            "divergence_region": asdict(self.region) if self.region else None,
            "optimistic": self.optimistic,
        }


def summarize(study: StoredStudy) -> Summary:
    """The summary of a stored study."""
    found = choices(study)
    best = found[0].best if found else None
    early = (study.attrs.get("spec", {}).get("train") or {}).get("early_stopping") or {}
    return Summary(
        study=study.name,
        direction=study.direction,
        score=study.score,
        n_trials=len(study.trials),
        n_complete=sum(trial.state == TrialState.COMPLETE for trial in study.trials),
        n_pruned=sum(trial.state == TrialState.PRUNED for trial in study.trials),
        n_diverged=sum(map(is_diverged, study.trials)),
        failed=failures(study),
        choices=found,
        comparisons=compare(study, found),
        n_folds=len(best.fold_scores) if best else 0,
        test_to_train=test_share(study),
        region=where_it_diverged(study),
        optimistic=early.get("on") == "fold",
        own_modules=own_modules(study.attrs.get("spec")),
    )


def own_modules(spec: Any) -> tuple[str, ...]:
    """The modules of a user's own code that a stored study names as python:module:name."""
    found: dict[str, None] = {}
    waiting = [spec]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and value.startswith("python:"):
            found[value.split(":")[1]] = None
    return tuple(found)


def region_text(region: Region) -> str:
    """`learning_rate 0.41 or more`"""
    if region.where == "is":
        return f"{region.knob} {'null' if region.value is None else region.value}"
    end = "more" if region.where == "above" else "less"
    return f"{region.knob} {number(region.value)} or {end}"


def _candidate(candidate: Candidate | None) -> dict[str, Any] | None:
    if candidate is None:
        return None
    return {
        "trial": candidate.number,
        "regularizer": candidate.regularizer,
        "lambda": candidate.lam,
        "score": candidate.score,
        "score_se": candidate.score_se,
        "fold_scores": list(candidate.fold_scores),
        "nonzero": candidate.nonzero,
        "parameters": candidate.params,
    }


def _names(comparisons: list[Comparison]) -> str:
    return conjunction([_name(comparison.regularizer) for comparison in comparisons])


def _name(regularizer: str) -> str:
    return "'none'" if regularizer == "none" else regularizer


def _gap(comparison: Comparison) -> str:
    if comparison.worse_by == comparison.se == 0:
        return "equal in every fold"
    return f"worse by {number(comparison.worse_by, 2)} ± {number(comparison.se, 2)}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
