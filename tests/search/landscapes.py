"""Problems in which it is known exactly, and computed in milliseconds, which choices diverge.

A landscape's `scores` takes parameters, one trial each, and gives the trials' scores, less is
better; None where training diverges.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

Params = Mapping[str, Any]


class Landscape(Protocol):
    @property
    def space(self) -> dict[str, BaseDistribution]: ...
    def scores(self, trials: Sequence[Params]) -> list[float | None]: ...


class Quadratic(NamedTuple):
    """Heavy ball on 1/2 sum h_i (w_i - 1)^2 + lambda/2 ||w||^2 from 0, 60 steps; the score is the
    distance to a held-out optimum at 0.9, rms.

    Diverges iff learning_rate > 2 (1 + momentum) / (max h + lambda): Polyak (1964),
    doi:10.1016/0041-5553(64)90137-5.
    """

    h: tuple[float, ...] = (4.0, 1.0, 0.1)

    @property
    def space(self) -> dict[str, BaseDistribution]:
        return {
            "learning_rate": FloatDistribution(1e-3, 10, log=True),
            "momentum": FloatDistribution(0, 0.9),
            "lambda": FloatDistribution(1e-6, 1, log=True),
        }

    def scores(self, trials: Sequence[Params]) -> list[float | None]:
        return [
            self._score(**{k.replace("lambda", "lam"): v for k, v in t.items()}) for t in trials
        ]

    def _score(self, learning_rate: float, momentum: float, lam: float) -> float | None:
        if learning_rate > 2 * (1 + momentum) / (max(self.h) + lam):
            return None
        h, w, before = np.array(self.h), np.zeros(len(self.h)), np.zeros(len(self.h))
        for _ in range(60):
            gradient = h * (w - 1) + lam * w
            w, before = w - learning_rate * gradient + momentum * (w - before), w
        return float(np.sqrt(np.mean((w - 0.9) ** 2)))


class DecayedLogistic(NamedTuple):
    """Gradient descent on the logistic loss of breast_cancer, every other row, with decoupled
    weight decay, w <- (1 - lr * lambda) w - lr * g, 50 steps; the score is the log loss on the
    other rows.

    The logistic loss has a bounded gradient, so w is bounded iff |1 - lr * lambda| < 1, whatever
    the data: it diverges iff lr * lambda > 2.
    """

    @property
    def space(self) -> dict[str, BaseDistribution]:
        return {
            "learning_rate": FloatDistribution(1e-2, 1e3, log=True),
            "lambda": FloatDistribution(1e-5, 1e2, log=True),
        }

    def scores(self, trials: Sequence[Params]) -> list[float | None]:
        return [self._score(t["learning_rate"], t["lambda"]) for t in trials]

    def _score(self, lr: float, lam: float) -> float | None:
        if lr * lam > 2:
            return None
        x, y = _cancer()
        w = np.zeros(x.shape[1])
        for _ in range(50):
            margin = y[::2] * (x[::2] @ w)
            gradient = -(y[::2] / (1 + np.exp(np.minimum(margin, 500)))) @ x[::2] / len(margin)
            w = (1 - lr * lam) * w - lr * gradient
        return float(np.mean(np.logaddexp(0, -y[1::2] * (x[1::2] @ w))))


@functools.cache
def _cancer() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x, y = load_breast_cancer(return_X_y=True)
    return scale(x), 2.0 * y - 1


def _sobol(seed: int) -> QMCSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


PLAIN: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "qmc": _sobol,
    "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
    "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
}
"""Optuna's own samplers, by seed."""


def searches(
    landscape: Landscape, samplers: Sequence[BaseSampler], *, trials: int = 96, at_once: int = 8
) -> list[list[FrozenTrial]]:
    """Plain Optuna studies side by side, one a sampler: each asks `at_once` trials, all of them
    are scored together, and each study is told its own.
    """
    studies = [optuna.create_study(sampler=sampler) for sampler in samplers]
    for _ in range(0, trials, at_once):
        asked = [(s, s.ask(landscape.space)) for s in studies for _ in range(at_once)]
        scores = landscape.scores([trial.params for _, trial in asked])
        for (study, trial), score in zip(asked, scores, strict=True):
            if score is None:
                trial.set_user_attr("failure", {"kind": "divergence"})
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, score)
    return [study.get_trials(deepcopy=False) for study in studies]


def search(
    landscape: Landscape, sampler: BaseSampler, *, trials: int = 96, at_once: int = 8
) -> list[FrozenTrial]:
    """One such study."""
    return searches(landscape, [sampler], trials=trials, at_once=at_once)[0]


class Found(NamedTuple):
    """What came of a search."""

    n_diverged: int
    best: float


def found(trials: Sequence[FrozenTrial]) -> Found:
    scores = [trial.value for trial in trials if trial.value is not None]
    return Found(sum(t.state is TrialState.FAIL for t in trials), min(scores, default=np.inf))
