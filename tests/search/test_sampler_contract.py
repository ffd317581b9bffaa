"""Optuna's own contract tests for samplers, on the wrapper around every sampler it fits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase

from sweep.search.divergence_aware import DivergenceAwareSampler
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


@pytest.mark.parametrize("name", SAMPLERS)
class TestRegistry(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return lambda: make_sampler(name, seed=0, space={}, number=0)


def test_every_sampler_of_the_registry_is_wrapped() -> None:
    """The grid is our own and needs its space beforehand: it is in TestRegistry only."""
    assert {*INNER, "grid"} == set(SAMPLERS)
