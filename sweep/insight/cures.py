"""The cures of exploding training: one table of them, and which of them a trial had."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from sweep.insight.stored import StoredStudy
from sweep.insight.words import value_text

Knobs = Mapping[str, Any]


def _is_set(name: str) -> Callable[[Knobs], bool]:
    return lambda knobs: is_given(knobs.get(name))


GRADIENT_CURES: dict[str, Callable[[Knobs], bool]] = {
    "clip_norm": _is_set("clip_norm"),
    "clip_value": _is_set("clip_value"),
    "clip_layer": _is_set("clip_layer"),
    "clip_percentile": _is_set("clip_percentile"),
    "normalized_sgd": lambda knobs: knobs.get("optimizer") == "normalized_sgd",
}
"""What is done to the gradient, and whether a trial with these knobs did it; a line a cure."""


def knobs_of(study: StoredStudy, trial: FrozenTrial) -> dict[str, Any]:
    """Every knob of a trial, fixed ones included, by its last key."""
    return {**study.fixed, **trial.params}


def penalty_of(knobs: Knobs) -> tuple[str, float | None]:
    """(regularizer, lambda); ("none", None) where lambda is 0, for then nothing is penalized."""
    regularizer, lam = str(knobs.get("regularizer") or "none"), positive(knobs.get("lambda"))
    return ("none", None) if regularizer == "none" or lam is None else (regularizer, lam)


def gradient_cures_of(knobs: Knobs) -> tuple[str, ...]:
    """The names of those of GRADIENT_CURES that a trial had."""
    return tuple(name for name, acts in GRADIENT_CURES.items() if acts(knobs))


NONE, ANY_REGULARIZER = "none", "regularizer"


def cure_of(knobs: Knobs) -> str:
    """`none`, a regularizer alone, cures of the gradient alone, or `regularizer + clip_norm`."""
    regularizer, lam = penalty_of(knobs)
    gradient = gradient_cures_of(knobs)
    if not gradient:
        return regularizer
    return " + ".join([ANY_REGULARIZER, *gradient] if lam is not None else gradient)


def order_of(cure: str) -> tuple[int, str]:
    """Sorts cures: none, a regularizer, the gradient's, both together."""
    parts = cure.split(" + ")
    if cure == NONE:
        return 0, cure
    if parts[0] == ANY_REGULARIZER:
        return 3, cure
    return (2 if parts[0] in GRADIENT_CURES else 1), cure


def clipping_text(knobs: Knobs) -> str:
    """`clip_norm 1`, or `no clipping`."""
    found = [f"{name} {value_text(knobs.get(name))}" for name in gradient_cures_of(knobs)]
    return ", ".join(found) or UNCLIPPED


UNCLIPPED = "no clipping"


def positive(value: Any) -> float | None:
    """A finite number above 0, as a logarithmic axis takes it; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def is_given(value: Any) -> bool:
    """Whether a knob's value turns something on: neither null, nor false, nor not finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is not None and value is not False
