"""Networks that explode, as landscapes: trained by the project's own engine, all asked at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from sklearn.datasets import load_digits

from studies.temporal_order import sequences
from sweep.search.space import distributions
from sweep.spec import StudyFile, load_spec
from sweep.training.lanes import LanesEngine
from sweep.training.preflight import make_experiment
from sweep.training.schedule import Finished, Schedule
from tests.command_lines import ROOT

SLOTS = 160


# Small, so that 4,000 trials take a minute or two.


def few_digits() -> tuple[Any, Any]:
    x, y = load_digits(return_X_y=True)
    return x[:400], y[:400]


def few_sequences() -> tuple[Any, Any]:
    return sequences(n_sequences=200, length=10)


STUDIES: dict[str, dict[str, Any]] = {
    "temporal-order": {
        "data": {"source": "python:networks:few_sequences"},
        "model": {"kind": "rnn", "hidden": 8, "init": {"normal": 0.1}},
        "train": {
            "learning_rate": {"low": 1e-2, "high": 1e3, "log": True},
            "momentum": {"low": 0.0, "high": 0.95},
            "clip_norm": {"choices": [None, 1.0]},
            "batch_size": 20,
            "epochs": 4,
        },
    },
    "mlp": {
        "data": {"source": "python:networks:few_digits"},
        "model": {"kind": "mlp", "hidden": [16, 16]},
        "train": {
            "learning_rate": {"low": 1e-2, "high": 1e3, "log": True},
            "momentum": {"low": 0.0, "high": 0.95},
            "clip_norm": {"choices": [None, 1.0]},
            "batch_size": 20,
            "epochs": 2,
        },
    },
}


class Network:
    """A study of `STUDIES`, two folds a trial; the score is the mean log loss."""

    def __init__(self, name: str) -> None:
        given = {
            "study": name,
            "task": "classification",
            "regularizer": {"choices": ["none", "l2"]},
            "lambda": {"low": 1e-5, "high": 1.0, "log": True},
            "cross_validation": {"kind": "kfold", "folds": 2},
            # Training is short: what grows tenfold within it has exploded.
            "divergence": {"loss_growth": 10.0, "gradient_growth": 100.0, "patience": 2},
        }
        file = load_spec({**given, **STUDIES[name]})
        file = StudyFile(file.spec, file.text, ROOT / "tests" / "benchmarks", file.name)
        self._spec = file.spec
        experiment, _ = make_experiment(file)
        engine = LanesEngine(experiment, SLOTS, lambda text: None)
        self._schedule = Schedule(engine, len(experiment.problem.folds))
        self._numbers = itertools.count()

    @property
    def space(self) -> dict[str, BaseDistribution]:
        return distributions(self._spec)

    def scores(self, trials: Sequence[Mapping[str, Any]]) -> list[float | None]:
        numbers = [next(self._numbers) for _ in trials]
        for number, params in zip(numbers, trials, strict=True):
            self._schedule.start(number, self._spec.setting(params))
        scores: dict[int, float | None] = {}
        while self._schedule.in_flight:
            for news in self._schedule.advance():
                if isinstance(news, Finished):
                    scores[news.trial] = news.result.score
        return [scores[number] for number in numbers]
