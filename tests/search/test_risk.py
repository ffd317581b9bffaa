"""Laws of the classifier, and of what is rejected on its word."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, RandomSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState

from sweep.search.divergence_aware import FLOOR, REDRAWS, DivergenceAwareSampler
from sweep.search.grid import is_without_effect
from sweep.search.risk import LEAST, MOST, RiskModel
from tests.search.cases import RANGES, finished, score
from tests.search.landscapes import PLAIN, DecayedLogistic, Quadratic, found, search


def _history(n: int, space: dict[str, BaseDistribution] = RANGES) -> list[FrozenTrial]:
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    asked = [study.ask(space).params for _ in range(n)]
    return [finished(i, params, score(params), space) for i, params in enumerate(asked)]


class Constant(RiskModel):
    """Says that everything diverges with one and the same probability."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.space: dict[str, BaseDistribution] = {}
        self.asked: list[dict[str, Any]] = []

    def of(self, study: str, trials: list[FrozenTrial]) -> Constant:  # type: ignore[override]
        self.space = intersection_search_space(trials)
        return self

    def __call__(self, params: dict[str, Any]) -> float:
        self.asked.append(params)
        return self.probability


def test_the_boundary_of_a_quadratic_is_found_from_ninety_six_trials() -> None:
    """Diverges iff learning_rate > 2 (1 + momentum) / (h + lambda)."""
    landscape = Quadratic()
    trials = search(landscape, RandomSampler(seed=0), trials=296)
    risk = RiskModel().of("quadratic", trials[:96])
    assert risk is not None
    right = [(risk(t.params) > 0.5) == (t.state is TrialState.FAIL) for t in trials[96:]]
    assert np.mean(right) > 0.95


def test_what_is_said_depends_on_the_trials_shown_and_not_on_when_it_was_asked() -> None:
    trials = _history(200)
    asked_always, asked_once = RiskModel(), RiskModel()
    for n in range(len(trials)):
        asked_always.of("s", trials[:n])
    after, alone = asked_always.of("s", trials), asked_once.of("s", trials)
    assert after is not None and alone is not None
    for trial in trials:
        assert after(trial.params) == alone(trial.params)


def test_it_is_fitted_now_and_then() -> None:
    trials, model = _history(200), RiskModel()
    fits = {id(risk): risk for n in range(200) if (risk := model.of("s", trials[:n]))}
    assert 10 < len(fits) < 35


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.FAIL])
def test_one_kind_of_trials_is_no_evidence(state: TrialState) -> None:
    assert RiskModel().of("s", [t for t in _history(200) if t.state is state]) is None
    assert RiskModel().of("s", _history(LEAST - 1)) is None


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.FAIL])
def test_without_evidence_the_inner_sampler_draws_as_if_it_were_alone(state: TrialState) -> None:
    alone, aware = TPESampler(seed=3), DivergenceAwareSampler(TPESampler(seed=3), shown="hidden")
    choices = []
    for sampler in (alone, aware):
        study = optuna.create_study(sampler=sampler)
        study.add_trials([t for t in _history(60) if t.state is state])
        choices.append([study.ask(RANGES).params for _ in range(20)])
    assert choices[0] == choices[1]


def test_a_knob_without_effect_has_none() -> None:
    risk = RiskModel(is_without_effect).of("s", _history(100))
    assert risk is not None
    one = {"learning_rate": 0.4, "lambda": 1e-6, "regularizer": "none", "hidden": 8}
    assert risk(one) == risk({**one, "lambda": 0.1})
    assert risk({**one, "regularizer": "l2"}) != risk({**one, "regularizer": "l2", "lambda": 0.1})


def test_another_choice_moves_the_boundary_a_third_as_far_as_a_numbers_whole_range() -> None:
    """Before anything is learned: in standard deviations of the linear part."""
    risk = RiskModel().of("s", _history(100))
    assert risk is not None
    one = {"learning_rate": 1e-3, "lambda": 1e-6, "regularizer": "l1", "hidden": 8}
    other = {"regularizer": "l2"}, {"learning_rate": 10.0}
    choice, whole_range = (
        np.linalg.norm(risk._columns({**one, **change}) - risk._columns(one)) for change in other
    )
    assert whole_range == 2.0 and abs(choice / whole_range - 1 / 3) < 0.03


def test_knobs_that_not_every_trial_has_do_not_count_and_a_new_range_is_not_judged() -> None:
    some = {name: dist for name, dist in RANGES.items() if name != "lambda"}
    trials = _history(60)
    for trial in trials[::2]:
        del trial.params["lambda"], trial.distributions["lambda"]
    risk = RiskModel().of("s", trials)
    assert risk is not None and risk.space == dict(sorted(some.items()))
    wider = {**RANGES, "learning_rate": FloatDistribution(1e-3, 100, log=True)}
    later = finished(60, trials[1].params, 1.0, wider)
    assert RiskModel().of("s", [*trials, later]) is None


def test_it_is_fitted_to_a_bounded_number_of_trials_of_either_kind() -> None:
    trials = [t for t in _history(2000) if t.state is TrialState.COMPLETE]
    few = [t for t in _history(60) if t.state is TrialState.FAIL]
    assert 2 < len(few) < 30 and len(trials) > 1000
    mixed = [*trials, *few]
    for number, trial in enumerate(mixed):
        trial.number = number
    risk = RiskModel()._fit(mixed)
    assert risk is not None
    labels = risk._classifier.base_estimator_.y_train_
    assert len(labels) == MOST and labels.sum() == len(few)


class Writing(RandomSampler):
    """Writes what it draws to the trial, and counts."""

    n_drawn = 0

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> Any:
        return RANGES

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        self.n_drawn += 1
        drawn = {n: self.sample_independent(study, trial, n, d) for n, d in search_space.items()}
        study._storage.set_trial_system_attr(trial._trial_id, "drawn", drawn)
        return drawn


def test_what_the_inner_sampler_writes_is_about_the_candidate_taken() -> None:
    inner = Writing(seed=0)
    study = optuna.create_study(sampler=DivergenceAwareSampler(inner, model=Constant(0.5)))
    for _ in range(50):
        study.ask(RANGES)
    for trial in study.trials:
        assert trial.system_attrs["drawn"] == trial.params
    assert inner.n_drawn > 100


def test_nothing_is_ruled_out_and_redraws_are_bounded() -> None:
    inner = Writing(seed=0)
    study = optuna.create_study(sampler=DivergenceAwareSampler(inner, model=Constant(1.0)))
    draws = []
    for _ in range(500):
        before = inner.n_drawn
        study.ask(RANGES)
        draws.append(inner.n_drawn - before)
    # The least chance counts once a trial: at every draw it would come to 29%.
    assert set(draws) == {1, 1 + REDRAWS}
    assert 0.2 * FLOOR < np.mean(np.array(draws) == 1) < 2.5 * FLOOR


def test_what_is_enqueued_counts_as_it_will_run() -> None:
    model = Constant(0.5)
    study = optuna.create_study(sampler=DivergenceAwareSampler(Writing(seed=0), model=model))
    study.enqueue_trial({"learning_rate": 0.25})
    assert study.ask(RANGES).params["learning_rate"] == 0.25
    assert {params["learning_rate"] for params in model.asked} == {0.25}


def test_redrawing_leaves_the_generations_of_cmaes_as_they_are() -> None:
    """Each has `popsize` trials and is told once, before the next one is drawn."""
    space: dict[str, BaseDistribution] = {c: FloatDistribution(0, 1) for c in "ab"}
    inner = CmaEsSampler(seed=0, popsize=6)
    study = optuna.create_study(sampler=DivergenceAwareSampler(inner, model=Constant(0.5)))
    for _ in range(1 + 5 * 6):
        trial = study.ask(space)
        study.tell(trial, sum(trial.params.values()))
    drawn = study.trials[1:]
    assert [t.system_attrs["cma:generation"] for t in drawn] == [i // 6 for i in range(30)]
    told = [i for i, t in enumerate(drawn) if "cma:optimizer:0" in t.system_attrs]
    assert told == [6, 12, 18, 24]


def test_of_a_quasi_random_sequence_points_are_left_out_and_their_order_kept() -> None:
    space: dict[str, BaseDistribution] = {"a": FloatDistribution(0, 1)}

    def points(sampler: BaseSampler, n: int) -> list[float]:
        study = optuna.create_study(sampler=sampler)
        drawn = []
        for _ in range(n):
            trial = study.ask(space)
            study.tell(trial, 0.0)
            drawn.append(trial.params["a"])
        return drawn[1:]

    whole = iter(points(PLAIN["qmc"](0), 400))
    some = points(DivergenceAwareSampler(PLAIN["qmc"](0), model=Constant(0.3)), 40)
    assert all(point in whole for point in some)
    assert next(whole) is not None


class Counted(TPESampler):
    """Counts how often the space is inferred."""

    inferred = 0

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        self.inferred += 1
        return super().infer_relative_search_space(study, trial)


@pytest.mark.parametrize("n", [0, 60])
def test_the_study_is_looked_at_once_an_ask(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With evidence and without, with parameters drawn jointly and one by one."""
    looked: list[int] = []
    read = optuna.Study.get_trials

    def counted(study: optuna.Study, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        if study.sampler is aware:
            looked.append(len(study._storage.get_all_trials(study._study_id, deepcopy=False)))
        return read(study, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "get_trials", counted)
    inner = Counted(seed=0, n_startup_trials=5)
    aware = DivergenceAwareSampler(inner)
    study = optuna.create_study(sampler=aware)
    study.add_trials(_history(n))
    looked.clear()
    for i in range(3):
        trial = study.ask(RANGES)
        trial.suggest_float("more", 0, 1)
        assert len(looked) == inner.inferred == i + 1
        study.tell(trial, 0.0)


def test_a_sampler_that_has_asked_can_be_pickled(tmp_path: Path) -> None:
    aware = DivergenceAwareSampler(TPESampler(seed=0))
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(sampler=aware, storage=url)
    study.add_trials(_history(30))
    study.ask(RANGES)
    again = pickle.loads(pickle.dumps(aware))
    assert again._view is None and len(
        optuna.load_study(study_name=study.study_name, storage=url, sampler=again)
        .ask(RANGES)
        .params
    ) == len(RANGES)


def test_a_grid_is_left_alone() -> None:
    rates, momenta = [0.1, 0.3, 1.0, 3.0], [0.0, 0.9]
    space = {"learning_rate": rates, "momentum": momenta}
    study = optuna.create_study(sampler=DivergenceAwareSampler(GridSampler(space, seed=0)))
    for _ in range(8):
        trial = study.ask({n: CategoricalDistribution(v) for n, v in space.items()})
        if trial.params["learning_rate"] > 0.5:
            trial.set_user_attr("failure", {"kind": "divergence"})
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        else:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.0])
    tried = {tuple(t.params.values()) for t in study.trials}
    assert tried == set(itertools.product(rates, momenta))


@pytest.mark.parametrize(
    "landscape", [Quadratic(), DecayedLogistic()], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("name", ["tpe", "random", "qmc"])
def test_an_aware_sampler_diverges_at_most_a_third_as_often(name: str, landscape: Any) -> None:
    """96 trials, 8 at once, 3 seeds; against the plain sampler with the same seeds."""
    make = PLAIN[name]
    plain = [found(search(landscape, make(s))) for s in range(3)]
    aware = [found(search(landscape, DivergenceAwareSampler(make(s), seed=s))) for s in range(3)]
    assert 3 * sum(f.n_diverged for f in aware) <= sum(f.n_diverged for f in plain)
