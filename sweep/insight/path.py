"""The lambda path of a study: what each strength of each regularizer scored."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial

from sweep.insight.selection import Choice, candidates, choices, penalty
from sweep.insight.stored import StoredStudy, failure
from sweep.insight.words import number

MIN, ONE_SE, BEST = "lambda.min", "lambda.1se", "best"


@dataclass(frozen=True)
class Step:
    """A finished trial on the path. Scores are None unless it is COMPLETE.

    `mark` is lambda.min and lambda.1se as `Choice` has `best` and `strongest`; `best` is the best
    trial of those without a lambda.
    """

    regularizer: str
    lam: float | None
    score: float | None
    score_se: float | None
    nonzero: float | None
    trial: int
    state: str
    reason: str | None
    mark: str | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, `lam` under its name."""
        return {"lambda" if key == "lam" else key: value for key, value in asdict(self).items()}


COLUMNS = (
    *("regularizer", "lambda", "score", "score_se", "nonzero"),
    *("trial", "state", "reason", "mark"),
)


def lambda_path(study: StoredStudy) -> list[Step]:
    """Every finished trial: by regularizer, the best first, then by lambda and number."""
    complete = {candidate.number: candidate for candidate in candidates(study)}
    ranked = choices(study)
    marks = {number: text for choice in ranked for number, text in _marks(choice).items()}
    place = {choice.regularizer: i for i, choice in enumerate(ranked)}
    found = []
    for trial in study.trials:
        regularizer, lam = penalty(study, trial)
        scored = complete.get(trial.number)
        found.append(
            Step(
                regularizer=regularizer,
                lam=lam,
                score=scored.score if scored else None,
                score_se=scored.score_se if scored else None,
                nonzero=scored.nonzero if scored else None,
                trial=trial.number,
                state=trial.state.name,
                reason=_reason(trial),
                mark=marks.get(trial.number),
            )
        )
    key = lambda s: (place[s.regularizer], -math.inf if s.lam is None else s.lam, s.trial)  # noqa: E731
    return sorted(found, key=key)


def path_lines(study: StoredStudy) -> list[str]:
    """A sentence a regularizer: `l1: lambda.min 0.0179 (mse 0.5 ± 0.02, trial 7), ...`."""
    lines = []
    for choice in choices(study):
        best, strongest = choice.best, choice.strongest
        if best is None:
            lines.append(f"{choice.regularizer}: no trial completed, of {choice.n_trials}.")
            continue
        se = "" if best.score_se is None else f" ± {number(best.score_se, 2)}"
        what = BEST if best.lam is None else f"{MIN} {number(best.lam, 3)}"
        text = f"{choice.regularizer}: {what} ({study.score} {number(best.score)}{se}"
        text += f", trial {best.number})"
        if strongest is not None:
            text += f", {ONE_SE} {number(strongest.lam, 3)} ({study.score} "
            text += f"{number(strongest.score)}, trial {strongest.number})"
        lines.append(f"{text}.")
    return lines


def _marks(choice: Choice) -> dict[int, str]:
    best, strongest = choice.best, choice.strongest
    if best is None:
        return {}
    marks = {best.number: BEST if best.lam is None else MIN}
    if strongest is not None:
        before = marks.get(strongest.number)
        marks[strongest.number] = f"{before}, {ONE_SE}" if before else ONE_SE
    return marks


def _reason(trial: FrozenTrial) -> str | None:
    why = failure(trial)
    found = why.get("reason") or why.get("kind")
    return None if found is None else str(found)
