"""One stored trial, trained again alone by the reference engine, and compared to what is stored."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweep.errors import RequestError
from sweep.problem.prepare import Problem, prepare
from sweep.search.environment import package_versions
from sweep.search.study import describe_data, stored_spec
from sweep.spec import Choices, StudySpec
from sweep.spec.exact import EXACT
from sweep.store.provenance import differences
from sweep.store.storage import Store
from sweep.training.device import choose_device
from sweep.training.experiment import Experiment
from sweep.training.reference import ReferenceEngine
from sweep.training.schedule import Finished, Schedule, TrialResult

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""The largest relative difference of scores that counts as the same."""
EXACT_TOLERANCES = 100
"""How many times `train.tolerance` two exact solutions may differ in their scores."""
ALLOW_VARIABLE = "SWEEP_ALLOW"
_COMPARED = ("reason", "step", "fold")


@dataclass(frozen=True)
class Replay:
    """What was stored of a trial and what came of it now.

    `scores` are (name, stored, now) for each fold, or for each epoch of a pruned trial;
    `failure` are (name, stored, now) of a failure's reason, step and fold.
    """

    study: str
    number: int
    state: str
    scores: list[tuple[str, float | None, float | None]]
    failure: list[tuple[str, Any, Any]]
    tolerance: float
    changes: list[str]
    """What differs from when the trial was run: versions, data."""

    @property
    def difference(self) -> float | None:
        """The largest |stored - now| / max(|stored|, |now|); None where a score is missing."""
        found = 0.0
        for _, stored, now in self.scores:
            if stored is None or now is None:
                return None
            size = max(abs(stored), abs(now))
            found = max(found, abs(stored - now) / size if size > 0 else 0.0)
        return found

    @property
    def agrees(self) -> bool:
        same = all(stored == now for _, stored, now in self.failure)
        return same and self.difference is not None and self.difference <= self.tolerance


def replay(
    store: Store, study: str, number: int, allow: Collection[str] = (), device: str = "auto"
) -> Replay:
    """Trains trial `number` of `study` again, on a device.

    A stored study that names a user's own code imports only modules of `allow` (`module` or
    `python:module[:name]`) and of SWEEP_ALLOW: a database may come from anywhere. Raises
    RequestError for those, for unknown studies and trials, and for trials without an outcome.
    """
    attrs = store.study_attrs(store.study_id(study))
    trial = _find(store, study, number)
    spec = stored_spec(attrs, study)
    check_allowed(spec, study, allow)
    chosen = choose_device(device, spec)
    directory = Path(str(attrs.get("directory") or "."))
    problem = prepare(spec, directory)
    result = _train(Experiment(problem, spec, directory, chosen), trial)
    return Replay(
        study=study,
        number=number,
        state=trial.state.name,
        scores=list(_scores(trial, result, waves=spec.pruner == "wilcoxon")),
        failure=list(_failures(trial, result)),
        tolerance=_tolerance(spec),
        changes=_changes(attrs, problem),
    )


def _tolerance(spec: StudySpec) -> float:
    """The exact solver's answers are as exact as they were asked to be."""
    allowed = TOLERANCE[spec.train.dtype]
    exact = spec.train.optimizer == EXACT
    return max(allowed, EXACT_TOLERANCES * spec.train.tolerance) if exact else allowed


def check_allowed(spec: StudySpec, study: str, allow: Collection[str]) -> None:
    """Raises RequestError if a stored study would import a module that nobody has permitted."""
    asked = [*allow, *os.environ.get(ALLOW_VARIABLE, "").split(",")]
    permitted = {text.strip().removeprefix("python:").partition(":")[0] for text in asked}
    for name in _own_code(spec):
        module = name.split(":")[1]
        if module not in permitted:
            raise RequestError(
                f"Study {study!r} runs code of its own, {name}, which a database may not start by "
                f"itself. If you trust it, add: --allow {module} (or set {ALLOW_VARIABLE}={module})"
            )


def _own_code(spec: StudySpec) -> Iterator[str]:
    regularizer = spec.regularizer
    listed = regularizer.choices if isinstance(regularizer, Choices) else [regularizer]
    for name in (spec.data.source, spec.model.kind, *listed):
        if name.startswith("python:"):
            yield name


def _find(store: Store, study: str, number: int) -> FrozenTrial:
    finished, _ = store.finished_since(store.study_id(study))
    by_number = {trial.number: trial for trial in finished}
    if number not in by_number:
        last = max(by_number, default=None)
        there = "None has finished yet." if last is None else f"The last one is {last}."
        raise RequestError(
            f"Study {study!r} has no finished trial {number}. {there} See: sweep trials {study}"
        )
    trial = by_number[number]
    failure = trial.user_attrs.get("failure") or {}
    if trial.state == TrialState.FAIL and failure.get("kind") not in ("divergence", "error"):
        kind = failure.get("kind") or "failed without a diagnosis"
        raise RequestError(f"Trial {number} of {study!r} has no outcome to reproduce: {kind}.")
    return trial


def _train(experiment: Experiment, trial: FrozenTrial) -> TrialResult:
    spec, n_folds = experiment.spec, len(experiment.problem.folds)
    setting = spec.setting(trial.params)
    schedule = Schedule(ReferenceEngine(experiment), n_folds, waves=spec.pruner == "wilcoxon")
    schedule.start(trial.number, setting)
    while True:
        for news in schedule.advance():
            if isinstance(news, Finished):
                return news.result


def _scores(
    trial: FrozenTrial, result: TrialResult, *, waves: bool
) -> Iterator[tuple[str, float | None, float | None]]:
    if trial.state == TrialState.COMPLETE:
        now = result.fold_scores or []
        for fold, stored in enumerate(trial.user_attrs.get("fold_scores") or []):
            yield f"fold {fold}", stored, now[fold] if fold < len(now) else None
    elif trial.state == TrialState.PRUNED:
        for step, stored in sorted(trial.intermediate_values.items()):
            yield f"{'fold' if waves else 'epoch'} {step}", stored, result.intermediate.get(step)


def _failures(trial: FrozenTrial, result: TrialResult) -> Iterator[tuple[str, Any, Any]]:
    stored: Mapping[str, Any] = trial.user_attrs.get("failure") or {}
    now = result.failure.as_json() if result.failure is not None else {}
    if trial.state == TrialState.FAIL or (trial.state == TrialState.COMPLETE and now):
        for key in _COMPARED:
            yield key, stored.get(key), now.get(key)


def _changes(attrs: Mapping[str, Any], problem: Problem) -> list[str]:
    return [
        *differences(attrs.get("versions") or {}, package_versions()),
        *differences(attrs.get("data") or {}, describe_data(problem), "data"),
    ]
