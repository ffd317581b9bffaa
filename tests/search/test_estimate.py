"""The time that a run will take: measured, complete, and never written anywhere."""

import pytest

from sweep.search.estimate import estimate
from tests.training.trials import BASE, experiment, merge

TRAIN = {"learning_rate": {"low": 0.01, "high": 0.1}, "epochs": 40}
STUDY = merge(BASE, train=TRAIN, sampler="random")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Half of this file's time would go into measuring more exactly."""
    monkeypatch.setattr("sweep.training.pace.MEASURED_SECONDS", 0.3)


def time_of(study, trials=20):
    return estimate(experiment(study), trials, start=3.0)


def test_the_estimate_is_the_sum_of_its_parts():
    found = time_of(STUDY)
    assert found.seconds == pytest.approx(found.start + found.choosing + found.training)
    assert found.start == 3.0 and found.choosing > 0
    assert 0 <= found.scoring + found.compiling <= found.training
    assert not found.at_most


def test_more_work_of_the_same_kind_takes_longer_and_its_step_does_not():
    few, many = time_of(STUDY, trials=20), time_of(STUDY, trials=20_000)
    assert 10 * few.training < many.training
    longer = time_of(merge(STUDY, train={"epochs": 4000}))
    assert 2 * few.training < longer.training
    assert 0.02 < longer.step / few.step < 50


@pytest.mark.parametrize(
    "change", [{"pruner": "median"}, {"train": {**TRAIN, "early_stopping": {}}}], ids=str
)
def test_what_may_end_trials_early_makes_it_a_bound(change):
    assert time_of(merge(STUDY, **change)).at_most


def test_little_work_is_not_compiled_and_much_is():
    assert time_of(STUDY).engine == "lanes, 48 slots, eager: too little to compile"
    assert "compiled" in time_of(STUDY, 10**6).engine


def test_models_of_several_shapes_are_timed_each():
    several = merge(STUDY, model={"kind": "mlp", "hidden": {"choices": [[4], [5], [6]]}})
    assert "slots in 3 programs, eager" in time_of(several).engine


def test_a_model_that_cannot_be_batched_is_timed_as_it_will_train():
    study = merge(STUDY, model={"kind": "python:toy_data:LooksAtData"})
    little, much = time_of(study, 5), time_of(study, 5000)
    assert little.engine == "reference, one model at a time: model uses .item()"
    assert little.step and much.training > 10 * little.training


def test_a_model_whose_scores_cannot_be_batched_is_timed_as_it_will_train():
    """Its steps can: a run meets that at the end of the first epoch."""
    study = merge(STUDY, model={"kind": "python:toy_data:LooksAtDataOnceTrained"})
    found = time_of(study, 5)
    assert found.engine == "reference, one model at a time: model branches on the data"
    assert found.step


def test_what_fails_at_once_is_not_timed():
    found = time_of(merge(STUDY, model={"kind": "python:toy_data:Leaves"}))
    assert found.training is None and found.seconds is None


def test_the_exact_solver_is_timed_by_solving():
    study = merge(STUDY, model={"kind": "linear"}, regularizer="l1", lam={"low": 0.01, "high": 0.1})
    study["train"] = {"optimizer": "fista"}
    found = time_of(study)
    assert found.engine.endswith("exact solver") and 0 < found.training < 60
    assert found.step is None


def test_every_sampler_is_timed():
    for sampler in ("tpe", "gp", "cmaes", "qmc"):
        assert time_of(merge(STUDY, sampler=sampler)).choosing > 0
    grid = merge(STUDY, sampler="grid", train={"learning_rate": {"choices": [0.01, 0.02]}})
    assert time_of(grid, 2).choosing == 0


def test_nothing_is_compiled_for_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    time_of(STUDY, 10**6)
    # The index of what would be is there: the run to come need not trace again.
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json"}
