"""From which learning rate on full-batch gradient descent on least squares must explode.

On a quadratic whose largest curvature is c, gradient descent with heavy-ball momentum b diverges
above 2 (1 + b) / c, with Nesterov's momentum above 2 (1 + b) / ((1 + 2 b) c) (Polyak 1964,
doi:10.1016/0041-5553(64)90137-5; Goh 2017, doi:10.23915/distill.00006). `l2` adds lambda to the
curvature of the weights; soft thresholding adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep.insight.cures import gradient_cures_of, penalty_of
from sweep.insight.stored import StoredStudy

ADDS_LAMBDA = {"none": 0.0, "l1": 0.0, "l2": 1.0, "group_lasso": 0.0}
"""What share of lambda a regularizer adds to the curvature; elastic_net's is 1 - l1_ratio."""
NEUTRAL = {
    "optimizer": "sgd",
    "schedule": "constant",
    "warmup": 0,
    "decoupled_weight_decay": False,
}
"""Knobs that the formula knows at this value alone."""


def no_bound(study: StoredStudy) -> str | None:
    """Why no bound is known for any trial of the study; None where one may be."""
    spec: Mapping[str, Any] = study.attrs.get("spec") or {}
    if (spec.get("model") or {}).get("kind") != "linear" or spec.get("task") != "regression":
        return "a bound is known for linear models with squared error alone"
    if not study.attrs.get("curvature"):
        return "the study holds no curvature: it was run by an older sweep, or its data are large"
    stops = (spec.get("train") or {}).get("early_stopping") or {}
    if stops and stops.get("on") != "fold":
        return "early stopping holds out rows, whose part in the curvature is not known"
    if list(spec.get("penalize") or ["*"]) != ["*"]:
        return "only some of the weights are penalized"
    for name, value in NEUTRAL.items():
        if study.fixed.get(name, value) != value:
            return f"it is known for {name} {value} alone, and {name} is {study.fixed[name]}"
    batch = study.fixed.get("batch_size", "full")
    if not _is_full(batch, study):
        return f"it is known for full batches alone, and batch_size is {batch}"
    return None


def exploding_rate(study: StoredStudy, knobs: Mapping[str, Any]) -> float | None:
    """The learning rate above which training with these knobs diverges on some fold, if known.

    None where `no_bound` says why, where the gradient is clipped (it then oscillates instead), and
    for knobs that the formula does not know. With a bias that is not penalized beside features
    that are not centred, the curvature lies between max(h_all, h + lambda) and h_all + lambda, of
    which the first is taken: above the rate training still diverges for certain.
    """
    if no_bound(study) is not None or gradient_cures_of(knobs):
        return None
    if any(knobs.get(name, value) != value for name, value in NEUTRAL.items()):
        return None
    if not _is_full(knobs.get("batch_size"), study):
        return None
    regularizer, lam = penalty_of(knobs)
    share = ADDS_LAMBDA.get(regularizer)
    if regularizer == "elastic_net":
        share = 1 - float(knobs.get("l1_ratio", 0.5))
    if share is None:
        return None
    added = share * (lam or 0.0)
    highest = max(
        _curvature(study, knobs, h, h_all, added)
        for h, h_all in zip(*(study.attrs["curvature"][k] for k in KEYS), strict=True)
    )
    momentum = float(knobs.get("momentum") or 0.0)
    factor = (1 + momentum) / (1 + 2 * momentum if knobs.get("nesterov") else 1)
    return 2 * factor / highest if highest > 0 else None


KEYS = ("weights", "with_bias")


def _curvature(
    study: StoredStudy, knobs: Mapping[str, Any], h: float, h_all: float, added: float
) -> float:
    decay = float(knobs.get("weight_decay") or 0.0)
    if knobs.get("bias") is False:
        return h + added + decay
    if study.attrs["spec"].get("penalize_bias"):
        return h_all + added + decay
    return max(h_all, h + added) + decay


def _is_full(batch: Any, study: StoredStudy) -> bool:
    """Whether a batch is all training rows of every fold."""
    if batch in (None, "full"):
        return True
    rows = (study.attrs.get("data") or {}).get("rows")
    return isinstance(batch, int) and isinstance(rows, int) and batch >= rows
