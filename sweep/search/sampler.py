"""Which parameters a trial gets: the samplers that a study file can name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from sweep.errors import RequestError
from sweep.search.divergence_aware import REDRAWS, DivergenceAwareSampler
from sweep.search.few import Few
from sweep.search.grid import Grid, is_without_effect
from sweep.search.risk import RiskModel

MOST_SHOWN = 500
SAMPLERS = ("tpe", "gp", "cmaes", "random", "grid", "qmc")


def make_sampler(
    name: str,
    *,
    seed: int,
    space: Mapping[str, BaseDistribution],
    number: int,
    model: RiskModel | None = None,
    few: Few | None = None,
) -> DivergenceAwareSampler:
    """The sampler that chooses trial `number`: its choice depends on nothing but
    (seed, number, the trials shown to it).

    Every trial has a sampler of its own, seeded by (seed, number): no state is carried from one
    to the next, so a continued study goes on as an uninterrupted one. `qmc` takes point `number`
    of the scrambled Sobol sequence of `seed`, and where that is rejected point `number` of
    another scrambling; `grid` takes cell `number` of the grid in a seeded order; CMA-ES keeps its
    state in the trials' system attributes, as Optuna does; `tpe` looks at MOST_SHOWN finished
    trials. `model` and `few` spare the study's next sampler to learn what this one has learned.

    Raises RequestError for an unknown name, and for a grid over a range without a step.
    """
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    joint: dict[str, BaseDistribution] | None
    joint = {key: dist for key, dist in sorted(space.items()) if not dist.single()}
    inner: BaseSampler
    match name:
        case "tpe":
            inner = TPESampler(seed=own_seed)
        case "gp":
            inner = GPSampler(seed=own_seed, warn_independent_sampling=False)
        case "cmaes":
            inner = CmaEsSampler(
                seed=own_seed,
                # CMA-ES has no notion of a category; TPE learns those.
                independent_sampler=TPESampler(seed=own_seed),
                warn_independent_sampling=False,
            )
            joint = {k: d for k, d in joint.items() if not isinstance(d, CategoricalDistribution)}
        case "random":
            inner, joint = RandomSampler(seed=own_seed), None
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                inner = _SobolPoint(seed, own_seed, number)
        case "grid":
            grid = Grid(space, seed=seed)
            inner = CellSampler(grid.trial(number % grid.n_trials), own_seed)
        case _:
            raise RequestError(f"No sampler {name!r}. Samplers: {', '.join(SAMPLERS)}.")
    return DivergenceAwareSampler(
        inner,
        seed=seed,
        redraws=0 if name == "grid" else None,
        relative=joint,
        model=model or RiskModel(is_without_effect),
        few=(few or Few(MOST_SHOWN)) if name == "tpe" else None,
    )


class _SobolPoint(QMCSampler):
    """Point `number` of the sequence, instead of the next one by a counter in the database.

    Asked again, it takes the point of a sequence scrambled anew: the sequence's later points are
    other trials' own.
    """

    def __init__(self, seed: int, own_seed: int, number: int) -> None:
        super().__init__(
            scramble=True,
            seed=seed,
            independent_sampler=RandomSampler(seed=own_seed),
            warn_independent_sampling=False,
        )
        self._number = number
        self._scramblings = iter(np.random.SeedSequence(seed).generate_state(1 + REDRAWS))

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number

    def _sample_qmc(
        self, study: Study, search_space: dict[str, BaseDistribution]
    ) -> np.ndarray[Any, Any]:
        sample = super()._sample_qmc(study, search_space)
        self._seed = int(next(self._scramblings))
        return sample


class CellSampler(BaseSampler):
    """The values of one grid cell; what the cell does not hold is drawn at random."""

    def __init__(self, cell: Mapping[str, Any], seed: int) -> None:
        self._cell = cell
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {name: self._cell[name] for name in search_space if name in self._cell}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._random.reseed_rng()
