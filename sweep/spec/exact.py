"""What may stand beside `train.optimizer: fista`, the exact solver of convex problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweep.spec.study import StudySpec

EXACT = "fista"
NOT_SOLVED = ("spectral", "orthogonal", "vanishing")
"""Regularizers without a proximal step."""
MOST_ITERATIONS = 10_000
"""The default of `train.epochs`."""

_WITHOUT = (
    "learning_rate",
    "momentum",
    "nesterov",
    "weight_decay",
    "decoupled_weight_decay",
    "clip_norm",
    "clip_value",
    "clip_percentile",
    "clip_layer",
    "schedule",
    "warmup",
    "early_stopping",
    "l1",
)


def check_exact(spec: StudySpec) -> None:
    """Raises ValueError for what an exact solution leaves no room for."""
    train, model = spec.train, spec.model
    if model.kind != "linear":
        raise ValueError(
            f"train.optimizer {EXACT} solves convex problems only: it needs model.kind linear, "
            f"not {model.kind}"
        )
    if not isinstance(train.epochs, int):
        raise ValueError(
            f"train.epochs is the most iterations that train.optimizer {EXACT} may take, and does "
            "not change the optimum: give one number, or leave it out"
        )
    if train.batch_size != "full":
        raise ValueError(
            f"train.optimizer {EXACT} looks at all rows in every iteration: leave train.batch_size "
            "out, or write full"
        )
    fields = type(train).model_fields
    given = [key for key in _WITHOUT if getattr(train, key) != fields[key].default]
    if given:
        raise ValueError(
            f"train.optimizer {EXACT} finds its own step and stops at the optimum: "
            f"leave out train.{', train.'.join(given)}"
        )
    if getattr(model, "init", "default") not in ("default", "zeros"):
        raise ValueError(
            f"model.init does not matter to train.optimizer {EXACT}, which finds the optimum from "
            "any start: leave it out"
        )
    listed = spec.regularizer
    for name in getattr(listed, "choices", [listed]):
        if name in NOT_SOLVED:
            raise ValueError(
                f"regularizer {name} has no proximal step, which train.optimizer {EXACT} takes: "
                "use none, l1, l2, elastic_net or group_lasso, or another optimizer"
            )
    if spec.pruner in ("median", "hyperband"):
        raise ValueError(
            f"pruner {spec.pruner} compares unfinished models, and train.optimizer {EXACT} knows "
            "one answer a fold: use pruner wilcoxon or none"
        )
