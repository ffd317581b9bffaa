"""Which parameters a trial gets: Optuna's samplers, taught by the trials that diverged."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from optuna import Study, load_study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import NopPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweep.errors import RequestError
from sweep.search.grid import Grid

SAMPLERS = ("tpe", "gp", "cmaes", "random", "grid", "qmc")
Shown = Literal["pruned", "worst", "hidden"]


def has_diverged(trial: FrozenTrial) -> bool:
    """Whether its parameters are to blame: other failures are no evidence about them."""
    if trial.state is not TrialState.FAIL:
        return False
    failure = trial.user_attrs.get("failure")
    return isinstance(failure, Mapping) and failure.get("kind") == "divergence"


class DivergenceAwareSampler(BaseSampler):
    """Asks `inner`, which sees every diverged trial as a bad one; the study keeps it FAIL.

    Optuna's samplers ignore FAIL, so they return to a diverging region again and again. Here the
    inner sampler looks at the study through a view in which a diverged trial is

    - `pruned`: PRUNED before its first step at the worst infinity, the last of all in the order
      by which TPE splits good from bad;
    - `worst`: COMPLETE at the worst finite value so far, and absent while there is none, for
      samplers that fit values (GP, CMA-ES);
    - `hidden`: FAIL, as it is, for samplers that ignore history.

    `shown` follows from the type of `inner` unless given. `relative` is the search space to sample
    jointly when it is known beforehand; otherwise the inner sampler infers it from the trials.
    What the inner sampler writes (its own attributes of a trial) goes to the study itself.
    """

    def __init__(
        self,
        inner: BaseSampler,
        *,
        shown: Shown | None = None,
        relative: Mapping[str, BaseDistribution] | None = None,
    ) -> None:
        self.inner = inner
        self.shown: Shown = shown or _default_shown(inner)
        self.relative = relative

    def __str__(self) -> str:
        return f"DivergenceAwareSampler({self.inner})"

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if self.relative is not None:
            return dict(self.relative)
        return self.inner.infer_relative_search_space(self._view(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(self._view(study), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        view = self._view(study)
        return self.inner.sample_independent(view, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()

    def _view(self, study: Study) -> Study:
        if self.shown == "hidden" or len(study.directions) > 1:
            return study
        # A study remembers the trials it was shown, so each call gets a new one.
        return load_study(
            study_name=study.study_name,
            storage=cast(BaseStorage, _View(study, self.shown)),
            sampler=self.inner,
            pruner=NopPruner(),
        )


class _View:
    """A study's storage as of now, with its diverged trials shown as bad ones."""

    def __init__(self, study: Study, shown: Shown) -> None:
        # The one private name used: Optuna has no other way from a study to its storage.
        self._storage = study._storage
        self._trials = study.get_trials(deepcopy=False)
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        if shown == "pruned":
            state, value = TrialState.PRUNED, sign * math.inf
        else:
            finite = [sign * v for t in self._trials if (v := _finite(t)) is not None]
            if not finite:
                return
            state, value = TrialState.COMPLETE, sign * max(finite)
        self._trials = [_as(t, state, value) if has_diverged(t) else t for t in self._trials]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = [t for t in self._trials if states is None or t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


def _finite(trial: FrozenTrial) -> float | None:
    if trial.state is not TrialState.COMPLETE or trial.value is None:
        return None
    return trial.value if math.isfinite(trial.value) else None


def _as(trial: FrozenTrial, state: TrialState, value: float) -> FrozenTrial:
    return FrozenTrial(
        number=trial.number,
        state=state,
        value=value,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
        # TPE ranks pruned trials by how far they came: no diverged one may profit from its steps.
        intermediate_values={},
        trial_id=trial._trial_id,
    )


def _default_shown(inner: BaseSampler) -> Shown:
    if isinstance(inner, TPESampler):
        return "pruned"
    return "worst" if isinstance(inner, GPSampler | CmaEsSampler) else "hidden"


def make_sampler(
    name: str, *, seed: int, space: Mapping[str, BaseDistribution], number: int
) -> BaseSampler:
    """The sampler that chooses trial `number`: its choice depends on nothing but
    (seed, number, the trials shown to it).

    Every trial has a sampler of its own, seeded by (seed, number): no state is carried from one
    to the next, so a continued study goes on as an uninterrupted one. `qmc` takes point `number`
    of the scrambled Sobol sequence of `seed`, `grid` cell `number` of the grid in a seeded order;
    CMA-ES keeps its state in the trials' system attributes, as Optuna does.

    Raises RequestError for an unknown name, and for a grid over a range without a step.
    """
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    several = {key: dist for key, dist in sorted(space.items()) if not dist.single()}
    match name:
        case "tpe":
            return DivergenceAwareSampler(TPESampler(seed=own_seed), relative=several)
        case "gp":
            gp = GPSampler(seed=own_seed, warn_independent_sampling=False)
            return DivergenceAwareSampler(gp, relative=several)
        case "cmaes":
            numbers = {
                key: dist
                for key, dist in several.items()
                if not isinstance(dist, CategoricalDistribution)
            }
            cmaes = CmaEsSampler(
                seed=own_seed,
                # CMA-ES has no notion of a category; TPE learns those.
                independent_sampler=TPESampler(seed=own_seed),
                warn_independent_sampling=False,
            )
            return DivergenceAwareSampler(cmaes, relative=numbers)
        case "random":
            return DivergenceAwareSampler(RandomSampler(seed=own_seed))
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                qmc = _SobolPoint(seed, own_seed, number)
            return DivergenceAwareSampler(qmc, relative=several)
        case "grid":
            grid = Grid(space, seed=seed)
            cell = grid.trial(number % grid.n_trials)
            return DivergenceAwareSampler(CellSampler(cell, own_seed), relative=several)
        case _:
            raise RequestError(f"No sampler {name!r}. Samplers: {', '.join(SAMPLERS)}.")


class _SobolPoint(QMCSampler):
    """Point `number` of the sequence, instead of the next one by a counter in the database."""

    def __init__(self, seed: int, own_seed: int, number: int) -> None:
        super().__init__(
            scramble=True,
            seed=seed,
            independent_sampler=RandomSampler(seed=own_seed),
            warn_independent_sampling=False,
        )
        self._number = number

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class CellSampler(BaseSampler):
    """The values of one grid cell; what the cell does not hold is drawn at random."""

    def __init__(self, cell: Mapping[str, Any], seed: int) -> None:
        self._cell = cell
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {name: self._cell[name] for name in search_space if name in self._cell}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._random.reseed_rng()
