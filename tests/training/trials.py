"""Trains trials on an engine and returns what came of them."""

from pathlib import Path

import torch

from sweep.problem.prepare import prepare
from sweep.spec import load_spec
from sweep.training.experiment import Experiment
from sweep.training.lanes import LanesEngine
from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_program import Program
from sweep.training.lanes_step import StepInputs
from sweep.training.member import Member
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
    exp: Experiment, trials: dict[int, dict], engine: str = "lanes", slots: int = 64, **options
) -> dict[int, TrialResult]:
    """The trials' results; a notice that a module cannot be batched is an error. `options`: of
    LanesEngine.
    """
    if engine == "reference":
        made = ReferenceEngine(exp)
    else:
        made = LanesEngine(exp, slots, notice=_refuse, **options)
    schedule = Schedule(made, len(exp.problem.folds))
    for number, params in trials.items():
        schedule.start(number, exp.spec.setting(params))
    results = {}
    while schedule.in_flight:
        for news in schedule.advance():
            if isinstance(news, Finished):
                results[news.trial] = news.result
    assert made.pending == 0
    made.close()
    return results


def begun(exp: Experiment, params: dict, lanes: int) -> tuple[Program, StepInputs]:
    """A program that has begun to train so many lanes on fold 0, and inputs for a step of it."""
    setting = exp.spec.setting(params)
    models = [LaneModel.build(exp, Member(trial, 0, setting)) for trial in range(lanes)]
    program = Program(exp, models[0], lanes)
    program.waiting.extend(models)
    program.advance()
    zero = torch.zeros(lanes, dtype=torch.int64)
    batch = program.banks[0].equipment.orders.batch
    return program, StepInputs(
        folds=zero,
        rows=torch.zeros(lanes, batch, dtype=torch.int32),
        n_rows=zero + batch,
        step=zero,
        learning_rate=torch.full((lanes,), 0.1, dtype=exp.dtype),
    )


def _refuse(text: str) -> None:
    raise AssertionError(text)
