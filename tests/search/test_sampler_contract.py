"""Optuna's own contract tests for samplers, on the wrapper around every sampler it fits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.search_space import intersection_search_space
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase
from optuna.trial import FrozenTrial

from sweep.search.divergence_aware import DivergenceAwareSampler
from sweep.search.risk import Risk, RiskModel
from sweep.search.sampler import SAMPLERS, make_sampler


def _qmc() -> QMCSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return QMCSampler(seed=0, warn_independent_sampling=False)


INNER: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: TPESampler(n_startup_trials=0, seed=0),
    "gp": lambda: GPSampler(n_startup_trials=0, seed=0),
    "cmaes": lambda: CmaEsSampler(n_startup_trials=0, seed=0),
    "random": lambda: RandomSampler(seed=0),
    "qmc": _qmc,
}
# Half a minute of Gaussian processes fitted to two points.
RELATIVE = ("tpe", pytest.param("gp", marks=pytest.mark.slow), "cmaes", "qmc")


@pytest.mark.parametrize("name", INNER)
class TestWrapper(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return lambda: DivergenceAwareSampler(INNER[name]())


@pytest.mark.parametrize("name", RELATIVE)
class TestRelativeWrapper(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return lambda: DivergenceAwareSampler(INNER[name]())


class Doubt(RiskModel):
    """Says of every candidate that it diverges as likely as not, from the first trial on."""

    def of(self, study: str, trials: Sequence[FrozenTrial]) -> Risk:
        return _Even(intersection_search_space(list(trials), include_pruned=True))


class _Even(Risk):
    def __init__(self, space: dict[str, BaseDistribution]) -> None:
        self.space = space

    def __call__(self, params: Mapping[str, Any]) -> float:
        return 0.5


def _doubting(name: str) -> Callable[[], BaseSampler]:
    return lambda: DivergenceAwareSampler(INNER[name](), model=Doubt(), redraws=3)


@pytest.mark.parametrize("name", [n for n in INNER if n != "gp"])
class TestRedrawing(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return _doubting(name)


@pytest.mark.parametrize("name", RELATIVE)
class TestRelativeRedrawing(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return _doubting(name)


@pytest.mark.parametrize("name", SAMPLERS)
class TestRegistry(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return lambda: make_sampler(name, seed=0, space={}, number=0)


def test_every_sampler_of_the_registry_is_wrapped() -> None:
    """The grid is our own and needs its space beforehand: it is in TestRegistry only."""
    assert {*INNER, "grid"} == set(SAMPLERS)
