"""An Optuna study made of trials that somebody else keeps."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from optuna import Study, load_study
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_STUDY_ID = 0


def altered(trial: FrozenTrial, **changes: Any) -> FrozenTrial:
    """A trial like this one but for `changes`; the rest of what it holds is shared."""
    same = {
        "number": trial.number,
        "state": trial.state,
        "value": trial.value,
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
        "params": trial.params,
        "distributions": trial.distributions,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": trial.intermediate_values,
        "trial_id": trial._trial_id,
    }
    return FrozenTrial(**{**same, **changes})


class Window(InMemoryStorage):
    """What a sampler or a pruner sees while it decides about one trial.

    `trials` are shown as they are, never copied: looking at 5,000 of them costs no more than
    reading them. The trial decided about, `current`, is the only one that may be written to:
    samplers and pruners keep notes in its system attributes.
    """

    def __init__(self, name: str, direction: StudyDirection) -> None:
        super().__init__()
        self._name = name
        self._direction = direction
        self._trials: Sequence[FrozenTrial] = ()
        self._current: FrozenTrial | None = None

    def study(
        self,
        trials: Sequence[FrozenTrial],
        current: FrozenTrial,
        sampler: BaseSampler,
        pruner: BasePruner,
    ) -> Study:
        """The study as it looks from here; the next call changes what earlier ones show."""
        self._trials, self._current = trials, current
        return load_study(study_name=self._name, storage=self, sampler=sampler, pruner=pruner)

    def get_study_id_from_name(self, study_name: str) -> int:
        return _STUDY_ID

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [self._direction]

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        return [t for t in self._trials if states is None or t.state in states]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        complete = self.get_all_trials(study_id, states=(TrialState.COMPLETE,))
        best = max if self._direction == StudyDirection.MAXIMIZE else min
        # Of equal values the least number, whatever the order of arrival.
        sign = -1 if self._direction == StudyDirection.MAXIMIZE else 1
        return best(complete, key=lambda t: (t.values[0], sign * t.number))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        assert self._current is not None and trial_id == self._current._trial_id
        self._current.system_attrs[key] = value
