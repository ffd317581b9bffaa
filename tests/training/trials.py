"""Trains trials on an engine and returns what came of them."""

from pathlib import Path

from sweep.problem.prepare import prepare
from sweep.spec import load_spec
from sweep.training.experiment import Experiment
from sweep.training.lanes import LanesEngine
from sweep.training.reference import ReferenceEngine
from sweep.training.schedule import Finished, Schedule, TrialResult

HERE = Path(__file__).parent
BASE = {
    "study": "law",
    "data": {"source": "python:toy_data:three_classes"},
    "task": "classification",
    "model": {"kind": "mlp", "hidden": [6]},
    "train": {
        "learning_rate": {"low": 1e-6, "high": 1e300, "log": True},
        "batch_size": 16,
        "epochs": 4,
        "dtype": "float64",
    },
    "cross_validation": {"kind": "kfold", "folds": 3},
}


def merge(base: dict, **changes) -> dict:
    merged = dict(base)
    for key, value in changes.items():
        key = "lambda" if key == "lam" else key
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "model":
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged


def experiment(study: dict) -> Experiment:
    file = load_spec(study)
    return Experiment(prepare(file.spec, HERE), file.spec, HERE)


def train(
    exp: Experiment, trials: dict[int, dict], engine: str = "lanes", slots: int = 64
) -> dict[int, TrialResult]:
    """The trials' results; a notice that a module cannot be batched is an error."""
    if engine == "reference":
        made = ReferenceEngine(exp)
    else:
        made = LanesEngine(exp, slots, notice=_refuse)
    schedule = Schedule(made, len(exp.problem.folds))
    for number, params in trials.items():
        schedule.start(number, exp.spec.setting(params))
    results = {}
    while schedule.in_flight:
        for news in schedule.advance():
            if isinstance(news, Finished):
                results[news.trial] = news.result
    assert made.pending == 0
    return results


def _refuse(text: str) -> None:
    raise AssertionError(text)
