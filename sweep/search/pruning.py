"""Which trials to stop early: Optuna's pruners, each trial judged by what it may see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    WilcoxonPruner,
)
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from sweep.errors import RequestError
from sweep.search.window import Window, altered

PRUNERS = ("none", "median", "hyperband", "wilcoxon")
_REDUCTION_FACTOR = 3


def make_pruner(name: str, *, epochs: int) -> BasePruner:
    """Optuna's pruner of that name; `epochs` is the longest a trial may train.

    Raises RequestError for an unknown name.
    """
    match name:
        case "none":
            return NopPruner()
        case "median":
            return MedianPruner()
        case "hyperband":
            return HyperbandPruner(
                min_resource=1, max_resource=epochs, reduction_factor=_REDUCTION_FACTOR
            )
        case "wilcoxon":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return WilcoxonPruner()
        case _:
            raise RequestError(f"No pruner {name!r}. Pruners: {', '.join(PRUNERS)}.")


class Pruning:
    """The decisions of one pruner about every trial of a study, in any order of arrival.

    Results are added in the order in which they become visible; a decision names how many of
    them it may see. Results of other processes are seen by every decision from then on.
    """

    def __init__(
        self, name: str, *, direction: StudyDirection, seed: int, n_folds: int, epochs: int
    ) -> None:
        self._name = name
        self._n_folds = n_folds
        self._pruner = make_pruner(name, epochs=epochs)
        # Hyperband deals out its brackets by the study's name and the trial's number.
        self._window = Window(f"sweep-{seed}", direction)
        self._sampler = RandomSampler(seed=seed)
        self._current: dict[int, FrozenTrial] = {}
        self._visible: list[FrozenTrial] = []
        self._elsewhere: list[FrozenTrial] = []

    @property
    def prunes(self) -> bool:
        """Whether any trial may be pruned."""
        return self._name != "none"

    def decide(self, trial: FrozenTrial, step: int, value: float, n_seen: int) -> bool:
        """Whether to prune `trial` now that it reports `value`; the first `n_seen` results count.

        `trial` is RUNNING; its intermediate values are collected over the calls.
        """
        if not math.isfinite(value):
            return False
        current = self._current.setdefault(trial.number, _copy(trial))
        current.intermediate_values[step] = float(value)
        seen = self._visible[:n_seen] + self._elsewhere
        if self._name == "wilcoxon":
            # It compares with the best trial fold by fold, and warns where a fold is missing.
            seen = [t for t in seen if len(t.intermediate_values) == self._n_folds]
        return self._ask_pruner(current, seen)

    def scores(self, trial: FrozenTrial) -> dict[int, float]:
        """The finite intermediate values of a finished trial, as the pruner looks at them.

        Wilcoxon compares the scores of the folds. Only what is stored with the trial counts, so
        that a continued study decides as an uninterrupted one.
        """
        self._current.pop(trial.number, None)
        stored = trial.intermediate_values
        if self._name == "wilcoxon" and "fold_scores" in trial.user_attrs:
            stored = dict(enumerate(trial.user_attrs["fold_scores"]))
        return {s: v for s, v in stored.items() if v is not None and math.isfinite(v)}

    def add(self, result: FrozenTrial) -> None:
        """A result that later trials of this process may see."""
        self._visible.append(self._with_rungs(result))

    def add_elsewhere(self, result: FrozenTrial) -> None:
        """A result of another process."""
        self._elsewhere.append(self._with_rungs(result))

    def _with_rungs(self, result: FrozenTrial) -> FrozenTrial:
        """Hyperband compares the values at which trials passed its rungs: noted in their system
        attributes when they passed. Passing them again, alone, notes the same for a trial of
        an earlier run."""
        if self._name != "hyperband":
            return result
        again = _copy(result)
        for step in _rung_steps(result.intermediate_values):
            again.intermediate_values[step] = result.intermediate_values[step]
            self._ask_pruner(again, ())
        return again

    def _ask_pruner(self, current: FrozenTrial, seen: Sequence[FrozenTrial]) -> bool:
        study = self._window.study(seen, current, self._sampler, self._pruner)
        return self._pruner.prune(study, current)


def _rung_steps(values: Mapping[int, Any]) -> list[int]:
    """The first step reported at or after each power of the reduction factor."""
    steps: set[int] = set()
    rung, reported = 1, sorted(values)
    while reported and rung <= reported[-1]:
        steps.add(next(step for step in reported if step >= rung))
        rung *= _REDUCTION_FACTOR
    return sorted(steps)


def _copy(trial: FrozenTrial) -> FrozenTrial:
    return altered(trial, system_attrs={}, intermediate_values={}, trial_id=trial.number)
