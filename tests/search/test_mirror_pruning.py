"""Laws of pruning: Optuna decides, from what a trial may see."""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sweep.errors import RequestError
from sweep.search.mirror import Mirror
from sweep.search.pruning import PRUNERS, make_pruner
from tests.search.cases import RANGES, finished

EPOCHS = 27
N_FOLDS = 6
LENGTH = {"none": EPOCHS, "median": EPOCHS, "hyperband": EPOCHS, "wilcoxon": N_FOLDS}
PRUNING = [name for name in PRUNERS if name != "none"]


def _mirror(pruner: str, direction: str = "minimize", concurrency: int = 1) -> Mirror:
    return Mirror(
        direction=direction,
        space=RANGES,
        sampler="random",
        pruner=pruner,
        seed=7,
        concurrency=concurrency,
        n_folds=N_FOLDS,
        epochs=EPOCHS,
    )


def _curve(rng: random.Random, length: int) -> list[float]:
    level = rng.random()
    return [level + 0.3 * rng.random() / (1 + step) for step in range(length)]


def _train(mirror: Mirror, number: int, curve: list[float]) -> int | None:
    """The step at which the trial was pruned, None if never; it is told at its end."""
    params = mirror.ask(number)
    steps: dict[int, float] = {}
    pruned_at = None
    for step, value in enumerate(curve):
        steps[step] = value
        if mirror.report(number, step, value):
            pruned_at = step
            break
    value = sum(steps.values()) / len(steps)
    trial = finished(number, params, value, RANGES, steps=steps, pruned=pruned_at is not None)
    if pruned_at is None:
        trial.set_user_attr("fold_scores", list(steps.values()))
    mirror.tell(trial)
    return pruned_at


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("name", PRUNERS)
def test_one_trial_at_a_time_the_decisions_are_optunas_own(name: str, direction: str) -> None:
    rng = random.Random(1)
    mirror = _mirror(name, direction)
    study = optuna.create_study(
        study_name="sweep-7", direction=direction, pruner=make_pruner(name, epochs=EPOCHS)
    )
    here: list[int | None] = []
    there: list[int | None] = []
    for number in range(30):
        curve = _curve(rng, LENGTH[name])
        here.append(_train(mirror, number, curve))
        trial = study.ask()
        there.append(None)
        for step, value in enumerate(curve):
            trial.report(value, step)
            if trial.should_prune():
                there[-1] = step
                break
        if there[-1] is None:
            study.tell(trial, sum(curve) / len(curve))
        else:
            study.tell(trial, state=TrialState.PRUNED)
    assert here == there
    assert (here.count(None) < 30) == (name != "none")


@pytest.mark.parametrize("name", PRUNING)
def test_a_decision_sees_no_result_later_than_the_choice_of_its_trial(name: str) -> None:
    """Trial 1 in flight with trials that end far better is judged as if they did not exist."""
    alone, among = _mirror(name, concurrency=40), _mirror(name, concurrency=40)
    for mirror in (alone, among):
        for number in range(40):
            mirror.ask(number)
    params: dict[str, Any] = {knob: getattr(d, "low", None) for knob, d in RANGES.items()}
    params["regularizer"] = "l1"
    for number in range(2, 40):
        steps = {step: 0.01 * number for step in range(LENGTH[name])}
        trial = finished(number, params, 0.0, RANGES, steps=steps)
        trial.set_user_attr("fold_scores", list(steps.values()))
        among.tell(trial)
    for step in range(LENGTH[name]):
        assert among.report(1, step, 100.0) == alone.report(1, step, 100.0)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_never_reaches_a_pruner(name: str, value: float) -> None:
    """It neither prunes its own trial nor, stored with a finished one, moves another's fate."""
    rng = random.Random(2)
    clean, dirty = _mirror(name), _mirror(name)
    for number in range(12):
        curve = _curve(rng, LENGTH[name])
        expected = _train(clean, number, curve)
        params = dirty.ask(number)
        steps: dict[int, float] = {}
        pruned_at = None
        for step, good in enumerate(curve):
            assert dirty.report(number, step, value) is False
            steps[step] = good
            if dirty.report(number, step, good):
                pruned_at = step
                break
        assert pruned_at == expected
        trial = finished(
            number,
            params,
            sum(steps.values()) / len(steps),
            RANGES,
            steps={**steps, LENGTH[name]: value},
            pruned=pruned_at is not None,
        )
        if pruned_at is None:
            trial.set_user_attr("fold_scores", list(steps.values()))
        dirty.tell(trial)


def test_an_unknown_pruner_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(RequestError, match="none, median, hyperband, wilcoxon"):
        make_pruner("asha", epochs=3)


@pytest.mark.parametrize("name", PRUNERS)
def test_equal_scores_prune_nobody(name: str) -> None:
    mirror = _mirror(name)
    for number in range(9):
        pruned_at = _train(mirror, number, [0.5] * LENGTH[name])
        assert pruned_at is None
