"""What every law of the search room is tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.search.sampler import SAMPLERS

LEARNING = ("tpe", "gp", "cmaes")
"""The samplers that learn from scores; of the others, all but the grid learn from divergence."""

RANGES: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-3, 10, log=True),
    "lambda": FloatDistribution(1e-6, 0.1, log=True),
    "regularizer": CategoricalDistribution(["none", "l1", "l2"]),
    "hidden": IntDistribution(8, 64, step=8),
}
STEPS: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(0.1, 2.5, step=0.1),
    "lambda": FloatDistribution(0, 0.5, step=0.1),
    "regularizer": CategoricalDistribution(["none", "l1", "l2"]),
    "hidden": IntDistribution(8, 64, step=8),
}
SPACES = {name: STEPS if name == "grid" else RANGES for name in SAMPLERS}


def score(params: Mapping[str, Any]) -> float | None:
    """A trial's score, less is better; None where training diverges."""
    if params["learning_rate"] > 0.5:
        return None
    penalty = 0.0 if params["regularizer"] == "none" else params["lambda"]
    return (params["learning_rate"] - 0.1) ** 2 + penalty + params["hidden"] / 1000


def finished(
    number: int,
    params: Mapping[str, Any],
    value: float | None,
    space: Mapping[str, BaseDistribution],
    *,
    kind: str = "divergence",
    steps: Mapping[int, float] | None = None,
    pruned: bool = False,
) -> FrozenTrial:
    """Trial `number` as the database holds it: FAIL with its failure where there is no value."""
    state = TrialState.COMPLETE if value is not None else TrialState.FAIL
    trial = create_trial(
        state=TrialState.PRUNED if pruned else state,
        value=None if pruned else value,
        params=dict(params),
        distributions=dict(space),
        intermediate_values=dict(steps or {}),
        user_attrs={"failure": {"kind": kind}} if value is None and not pruned else {},
    )
    trial.number = number
    return trial
