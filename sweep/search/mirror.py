"""The study as the sampler sees it: in memory, and always as of the right trial."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweep.search.divergence_aware import DivergenceAwareSampler
from sweep.search.few import Few
from sweep.search.grid import Grid, is_without_effect
from sweep.search.pruning import Pruning
from sweep.search.risk import RiskModel
from sweep.search.sampler import MOST_SHOWN, CellSampler, make_sampler
from sweep.search.window import Window
from sweep.spec.knobs import encode_choice

# Samplers and pruners never look at the clock; Optuna wants started trials to have a time.
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)


class Mirror:
    """Chooses trials, and which of them to prune, from what they may see.

    In one process the choice of trial k, and every pruning decision about it, sees exactly the
    results of trials up to k - concurrency, and the parameters of all before k, in the order of
    their numbers: whatever arrives early waits its turn. So

    - `ask` may be called once those results are told (`may_ask`);
    - trials told before the first `ask`, those of a study that is continued, wait in the same
      way: a continued study goes on as an uninterrupted one;
    - trials of other processes (told after the first `ask`, never asked or adopted here) are
      history, visible from then on, and nobody waits for them.

    `direction` is minimize or maximize; `space` are the knobs that vary; `enqueue` the trials to
    try first (what they leave open is sampled). `n_trials` is how many there are to ask, None if
    there is no end.
    """

    def __init__(
        self,
        *,
        direction: str,
        space: Mapping[str, BaseDistribution],
        sampler: str,
        pruner: str,
        seed: int,
        concurrency: int,
        n_folds: int,
        enqueue: Sequence[Mapping[str, Any]] = (),
        epochs: int,
    ) -> None:
        self._space = dict(sorted(space.items()))
        self._sampler = sampler
        self._seed = seed
        self._model, self._few = RiskModel(is_without_effect), Few(MOST_SHOWN)
        self._concurrency = concurrency
        self._enqueue = [
            {name: _as_stored(self._space[name], value) for name, value in trial.items()}
            for trial in enqueue
        ]
        which = StudyDirection.MAXIMIZE if direction == "maximize" else StudyDirection.MINIMIZE
        self._window = Window("mirror", which)
        self._pruning = Pruning(pruner, direction=which, seed=seed, n_folds=n_folds, epochs=epochs)
        self._grid = Grid(space, seed=seed, enqueue=self._enqueue) if sampler == "grid" else None
        self.n_trials = None if self._grid is None else self._grid.n_trials

        self._trials: list[FrozenTrial] = []  # what samplers see, by number
        self._order: list[int] = []  # this process's trials, in the order of their choice
        self._rank: dict[int, int] = {}  # a trial's place in it
        self._results: dict[int, FrozenTrial] = {}  # told
        self._n_visible = 0  # results of self._order that samplers see
        self._before: dict[int, dict[str, Any]] = {}  # parameters of those known before the first
        self._has_begun = False

    def may_ask(self) -> bool:
        """Whether every result that the next choice must see has been told."""
        order = self._order if self._has_begun else sorted(self._before)
        n_needed = max(0, len(order) + 1 - self._concurrency)
        return all(number in self._results for number in order[self._n_visible : n_needed])

    def ask(self, number: int) -> dict[str, Any]:
        """The parameters of trial `number`; it is in flight from now on."""
        self._begin()
        assert number not in self._rank, f"trial {number} was asked before"
        trial = self._enter(number)
        trial.params.update(self._choose(trial))
        trial.distributions.update(self._space)
        self._insert(trial)
        return dict(trial.params)

    def adopt(self, number: int, params: Mapping[str, Any], *, elsewhere: bool = False) -> None:
        """Trial `number`, chosen earlier, is in flight: resumed here, or claimed `elsewhere`.

        Later choices wait for the result of a trial resumed here as for any other.
        """
        if number in self._rank or number in self._results:
            return
        if elsewhere:
            self._insert(self._frozen(number, TrialState.RUNNING, params))
        elif not self._has_begun:
            self._before[number] = dict(params)
        else:
            self._enter(number, strict=False)
            self._insert(self._frozen(number, TrialState.RUNNING, params))

    def withdraw(self, number: int) -> None:
        """Trial `number` is not this process's after all: never begun, or lost to another one.

        Later choices neither see it nor wait for it, until another process's result arrives.
        """
        rank = self._rank.pop(number)
        assert number not in self._results, f"trial {number} has a result"
        del self._order[rank]
        for later in self._order[rank:]:
            self._rank[later] -= 1
        del self._trials[self._place(number)]

    def report(self, number: int, step: int, value: float) -> bool:
        """An intermediate value; True when the trial is to be pruned now.

        `step` and `value` are an epoch and the mean fold score after it (median, hyperband), or
        a fold and its score (wilcoxon). A value that is not finite is no evidence either way.
        """
        self._begin()
        rank = self._rank.get(number)
        assert rank is not None, f"trial {number} was neither asked nor adopted"
        if not self._pruning.prunes:
            return False
        n_seen = max(0, rank + 1 - self._concurrency)
        trial = self._frozen(number, TrialState.RUNNING, {})
        return self._pruning.decide(trial, step, value, n_seen)

    def tell(self, trial: FrozenTrial) -> None:
        """A finished trial: COMPLETE, PRUNED, or FAIL with its `failure`; of any process,
        in any order. A trial told twice counts once."""
        assert trial.state.is_finished(), f"trial {trial.number} is {trial.state.name}"
        if trial.number in self._results:
            return
        result = self._result(trial)
        self._results[trial.number] = result
        if not self._has_begun:
            self._before[trial.number] = dict(result.params)
        elif trial.number not in self._rank:
            self._insert(result)
            self._pruning.add_elsewhere(result)

    def _begin(self) -> None:
        """The trials known so far take their places, as if each had been asked here."""
        if self._has_begun:
            return
        self._has_begun = True
        for number, params in sorted(self._before.items()):
            trial = self._enter(number, strict=False)
            if self._sampler == "cmaes" and self._fixed(number).keys() < self._space.keys():
                # CMA-ES keeps its state with the trials, as pickles. Those of a database are not
                # to be trusted, so the state is computed anew, choice by choice.
                self._sample_jointly(*self._consult(trial), trial)
            trial.params.update(params)
            trial.distributions.update({name: self._space[name] for name in params})
            self._insert(trial)
        self._before.clear()

    def _enter(self, number: int, *, strict: bool = True) -> FrozenTrial:
        """Give a trial its place, and let samplers see the results that it may see."""
        rank = len(self._order)
        self._order.append(number)
        self._rank[number] = rank
        for n in range(self._n_visible, max(0, rank + 1 - self._concurrency)):
            result = self._results.get(self._order[n])
            if result is None:
                assert not strict, f"trial {number} needs the result of trial {self._order[n]}"
                break
            self._insert(result)
            self._pruning.add(result)
            self._n_visible = n + 1
        return self._frozen(number, TrialState.RUNNING, {})

    def _choose(self, trial: FrozenTrial) -> dict[str, Any]:
        """Optuna's order: what is enqueued, then jointly sampled knobs, then each of the rest."""
        fixed = self._fixed(trial.number)
        if fixed.keys() >= self._space.keys():
            return dict(fixed)
        sampler, study = self._consult(trial)
        joint = self._sample_jointly(sampler, study, trial)
        params: dict[str, Any] = {}
        for name, dist in self._space.items():
            if name in fixed:
                params[name] = fixed[name]
            elif name in joint:
                params[name] = joint[name]
            elif dist.single():
                params[name] = _only_value(dist)
            else:
                params[name] = sampler.sample_independent(study, trial, name, dist)
        return params

    def _fixed(self, number: int) -> Mapping[str, Any]:
        return self._enqueue[number] if number < len(self._enqueue) else {}

    def _consult(self, trial: FrozenTrial) -> tuple[BaseSampler, Study]:
        sampler = self._sampler_of(trial.number)
        return sampler, self._window.study(self._trials, trial, sampler, NopPruner())

    def _sample_jointly(
        self, sampler: BaseSampler, study: Study, trial: FrozenTrial
    ) -> dict[str, Any]:
        sampler.before_trial(study, trial)
        relative = sampler.infer_relative_search_space(study, trial)
        return sampler.sample_relative(study, trial, relative)

    def _sampler_of(self, number: int) -> BaseSampler:
        if self._grid is None:
            return make_sampler(
                self._sampler,
                seed=self._seed,
                space=self._space,
                number=number,
                model=self._model,
                few=self._few,
            )
        cell = self._grid.trial(number % self._grid.n_trials)
        inner = CellSampler(cell, self._seed)
        return DivergenceAwareSampler(inner, relative=self._space, redraws=0)

    def _insert(self, trial: FrozenTrial) -> None:
        """Into its place by number; a result takes the place of the running trial."""
        place = self._place(trial.number)
        if place < len(self._trials) and self._trials[place].number == trial.number:
            trial.system_attrs.update(self._trials[place].system_attrs)
            self._trials[place] = trial
        else:
            self._trials.insert(place, trial)

    def _place(self, number: int) -> int:
        return bisect_left(self._trials, number, key=lambda t: t.number)

    def _result(self, trial: FrozenTrial) -> FrozenTrial:
        """What samplers and pruners may learn from a finished trial."""
        state, value = trial.state, trial.value if trial.state is TrialState.COMPLETE else None
        failure = trial.user_attrs.get("failure")
        kind = failure.get("kind") if isinstance(failure, Mapping) else None
        if value is not None and not math.isfinite(value):
            state, value, kind = TrialState.FAIL, None, "divergence"
        params = {name: trial.params[name] for name in self._space if name in trial.params}
        if len(params) < len(self._space):
            # It ended before it was chosen, or belongs to another space.
            state, value, kind = TrialState.FAIL, None, "error"
        result = self._frozen(trial.number, state, params, value)
        if state is TrialState.FAIL:
            result.user_attrs["failure"] = {"kind": kind}
        result.intermediate_values = self._pruning.scores(trial)
        return result

    def _frozen(
        self,
        number: int,
        state: TrialState,
        params: Mapping[str, Any],
        value: float | None = None,
    ) -> FrozenTrial:
        return FrozenTrial(
            number=number,
            state=state,
            value=value,
            datetime_start=_ANY_TIME,
            datetime_complete=_ANY_TIME if state.is_finished() else None,
            params=dict(params),
            distributions={name: self._space[name] for name in params},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=number,
        )


def _as_stored(dist: BaseDistribution, value: Any) -> Any:
    if isinstance(dist, CategoricalDistribution):
        value = encode_choice(value)
    return dist.to_external_repr(dist.to_internal_repr(value))


def _only_value(dist: BaseDistribution) -> Any:
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[0]
    assert isinstance(dist, FloatDistribution | IntDistribution)
    return dist.low
