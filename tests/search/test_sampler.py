"""Laws of the samplers: what a choice depends on, and what is learned from divergence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import NopPruner
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweep.errors import RequestError
from sweep.search.divergence_aware import DivergenceAwareSampler, View
from sweep.search.mirror import Mirror
from sweep.search.sampler import SAMPLERS, make_sampler
from sweep.search.window import Window
from tests.search.cases import LEARNING, SPACES, finished, score

DIRECTIONS = {"minimize": StudyDirection.MINIMIZE, "maximize": StudyDirection.MAXIMIZE}


def _choose(
    name: str,
    trials: Sequence[FrozenTrial],
    number: int,
    *,
    seed: int = 0,
    direction: str = "minimize",
) -> dict[str, Any]:
    """What `name` chooses for trial `number` when it is shown these trials."""
    space = SPACES[name]
    sampler = make_sampler(name, seed=seed, space=space, number=number)
    current = finished(number, {}, None, {})
    study = Window("test", DIRECTIONS[direction]).study(trials, current, sampler, NopPruner())
    joint = sampler.sample_relative(
        study, current, sampler.infer_relative_search_space(study, current)
    )
    return {
        key: joint[key] if key in joint else sampler.sample_independent(study, current, key, dist)
        for key, dist in space.items()
    }


def _history(name: str, n: int = 20, sign: float = 1.0, kind: str = "divergence") -> list[Any]:
    trials = []
    for number in range(n):
        params = _choose("grid" if name == "grid" else "random", [], number)
        value = score(params)
        value = None if value is None else sign * value
        trials.append(finished(number, params, value, SPACES[name], kind=kind))
    return trials


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_choice_depends_on_seed_number_and_trials_only(name: str) -> None:
    trials = _history(name)
    first = _choose(name, trials, 20)
    _choose(name, trials[:13], 21, seed=5)
    assert _choose(name, trials, 20) == first
    assert _choose(name, trials, 21) != first
    assert _choose(name, trials, 20, seed=1) != first


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_choice_is_inside_its_space(name: str) -> None:
    trials = _history(name)
    for number in (20, 21, 22):
        for key, value in _choose(name, trials, number).items():
            dist = SPACES[name][key]
            assert dist.to_external_repr(dist.to_internal_repr(value)) == value
            if isinstance(dist, CategoricalDistribution):
                assert value in dist.choices
            else:
                assert dist.low <= value <= dist.high  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SAMPLERS)
def test_maximising_the_negative_chooses_the_same(name: str) -> None:
    least = _choose(name, _history(name), 20)
    most = _choose(name, _history(name, sign=-1.0), 20, direction="maximize")
    assert most == pytest.approx(least)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["error", "worker_lost", "cancelled"])
def test_other_failures_are_no_evidence_about_the_parameters(name: str, kind: str) -> None:
    complete = [t for t in _history(name) if t.state is TrialState.COMPLETE]
    assert _choose(name, _history(name, kind=kind), 20) == _choose(name, complete, 20)


@pytest.mark.parametrize("name", LEARNING)
def test_divergence_alone_teaches_without_a_finite_value(name: str) -> None:
    diverged = [t for t in _history(name, 40) if t.state is TrialState.FAIL]
    choice = _choose(name, diverged, 40)
    assert choice.keys() == SPACES[name].keys()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "space",
    [{}, {"a": CategoricalDistribution([None]), "b": FloatDistribution(0.5, 0.5)}],
    ids=["empty", "single"],
)
def test_a_space_without_a_choice_has_one_trial(
    name: str, space: dict[str, BaseDistribution]
) -> None:
    mirror = Mirror(
        direction="minimize",
        space=space,
        sampler=name,
        pruner="none",
        seed=0,
        concurrency=1,
        n_folds=5,
        epochs=1,
    )
    only: dict[str, Any] = {"a": None, "b": 0.5} if space else {}
    for number in range(1 if name == "grid" else 13):
        assert mirror.ask(number) == only
        mirror.tell(finished(number, only, float(number), space))


def test_an_unknown_sampler_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(RequestError, match="tpe, gp, cmaes, random, grid, qmc"):
        make_sampler("annealing", seed=0, space={}, number=0)


def test_sobol_points_fill_every_interval_once() -> None:
    """A (0, k, 1)-net in base 2: of 2**k points, one in each of 2**k intervals of each axis."""
    space: dict[str, BaseDistribution] = {c: FloatDistribution(0, 1) for c in "abc"}
    points = []
    for number in range(64):
        sampler = make_sampler("qmc", seed=3, space=space, number=number)
        study = Window("t", StudyDirection.MINIMIZE).study(
            [], finished(number, {}, None, {}), sampler, NopPruner()
        )
        points.append(sampler.sample_relative(study, finished(number, {}, None, {}), space))
    for axis in space:
        assert sorted(int(64 * p[axis]) for p in points) == list(range(64))


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_view_shows_divergence_as_the_worst_of_all(name: str, direction: str) -> None:
    sign = 1.0 if direction == "minimize" else -1.0
    trials = _history(name, sign=sign)
    sampler = make_sampler(name, seed=0, space=SPACES[name], number=20)
    assert isinstance(sampler, DivergenceAwareSampler)
    window = Window("t", DIRECTIONS[direction])
    real = window.study(trials, trials[0], sampler, NopPruner())
    view = View(real, trials[0], sampler.shown).study(sampler.inner)
    worst = sign * max(sign * t.value for t in trials if t.state is TrialState.COMPLETE)
    n_diverged = 0
    for stored, shown in zip(trials, view.get_trials(), strict=True):
        if stored.state is TrialState.FAIL:
            n_diverged += 1
            expected = TrialState.PRUNED if name == "tpe" else TrialState.COMPLETE
            assert shown.state is expected
            assert shown.value == (sign * math.inf if name == "tpe" else worst)
            assert shown.params == stored.params and shown.number == stored.number
        else:
            assert shown == stored
    assert 0 < n_diverged < len(trials)


def test_the_database_keeps_its_failures(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/study.db",
        sampler=DivergenceAwareSampler(TPESampler(seed=0, n_startup_trials=4)),
    )
    for _ in range(12):
        trial = study.ask({"learning_rate": FloatDistribution(1e-3, 10, log=True)})
        if trial.params["learning_rate"] > 0.5:
            trial.set_user_attr("failure", {"kind": "divergence"})
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, trial.params["learning_rate"])
    for stored in study.get_trials():
        diverged = stored.params["learning_rate"] > 0.5
        assert stored.state is (TrialState.FAIL if diverged else TrialState.COMPLETE)
        assert (stored.value is None) == diverged


H = 4.0
GD: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-3, 10, log=True),
    "lambda": FloatDistribution(1e-6, 0.1, log=True),
}


def _descend(params: dict[str, Any], n_steps: int = 5) -> float | None:
    """Full-batch gradient descent on H/2 (w - 1)^2 + lambda/2 w^2 from 0; the score is the
    distance to a held-out optimum at 1/2. None if it diverges: every step goes further astray."""
    lr, lam = params["learning_rate"], params["lambda"]
    w, optimum = 0.0, H / (H + lam)
    gaps = [optimum]
    for _ in range(n_steps):
        w -= lr * (H * (w - 1) + lam * w)
        gaps.append(abs(w - optimum))
    diverges = bool(np.all(np.diff(gaps) > 0))
    assert diverges == (lr > 2 / (H + lam))
    return None if diverges else (w - 0.5) ** 2


def _n_diverged_plain(seed: int, direction: str) -> int:
    sign = 1.0 if direction == "minimize" else -1.0
    study = optuna.create_study(direction=direction, sampler=TPESampler(seed=seed))
    for _ in range(12):
        for trial in [study.ask(GD) for _ in range(8)]:
            value = _descend(trial.params)
            if value is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, sign * value)
    return sum(t.state is TrialState.FAIL for t in study.get_trials())


def _n_diverged(seed: int, direction: str) -> int:
    sign = 1.0 if direction == "minimize" else -1.0
    mirror = Mirror(
        direction=direction,
        space=GD,
        sampler="tpe",
        pruner="none",
        seed=seed,
        concurrency=8,
        n_folds=5,
        epochs=1,
    )
    values: list[float | None] = []
    in_flight: list[tuple[int, dict[str, Any]]] = []
    for number in range(96):
        while not mirror.may_ask():
            told, params = in_flight.pop(0)
            value = values[told]
            mirror.tell(finished(told, params, None if value is None else sign * value, GD))
        params = mirror.ask(number)
        in_flight.append((number, params))
        values.append(_descend(params))
    return values.count(None)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_taught_tpe_diverges_at_most_a_third_as_often(direction: str) -> None:
    """96 trials, 8 in flight, 5 seeds; descent diverges iff lr > 2 / (h + lambda)."""
    plain = sum(_n_diverged_plain(seed, direction) for seed in range(5))
    taught = sum(_n_diverged(seed, direction) for seed in range(5))
    assert 3 * taught <= plain


def test_building_a_sampler_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in SAMPLERS:
            make_sampler(name, seed=0, space=SPACES[name], number=0)
