"""The bound is where descent on a quadratic stops contracting, and is claimed nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sweep.insight.bound import ADDS_LAMBDA, exploding_rate, no_bound
from sweep.insight.stored import StoredStudy
from sweep.spec.study import Regularizer

RNG = np.random.default_rng(3)
FOLDS = [RNG.normal(size=(40, 3)) @ np.diag([1.0, 2.0, 0.5]) for _ in range(3)]
SPEC = {"task": "regression", "model": {"kind": "linear"}, "train": {"early_stopping": None}}
FIXED = {"optimizer": "sgd", "batch_size": "full", "schedule": "constant", "bias": True}


def largest(hessian: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(hessian)[-1])


def study(folds: list[np.ndarray], spec: Any = SPEC, **fixed: Any) -> StoredStudy:
    ones = [np.c_[x, np.ones(len(x))] for x in folds]
    attrs = {
        "spec": spec,
        "knobs": {"fixed": {**FIXED, **fixed}, "varied": ["learning_rate"]},
        "data": {"rows": 60},
        "curvature": {
            "weights": [largest(x.T @ x / len(x)) for x in folds],
            "with_bias": [largest(x.T @ x / len(x)) for x in ones],
        },
    }
    return StoredStudy("s", "minimize", "mse", attrs, ())


def radius(hessian: np.ndarray, rate: float, momentum: float, nesterov: bool) -> float:
    """The spectral radius of (w, buffer) -> (w, buffer), torch's SGD on a quadratic."""
    n, eye = len(hessian), np.eye(len(hessian))
    buffer = np.hstack([hessian, momentum * eye])
    step = np.hstack([hessian, np.zeros((n, n))]) + momentum * buffer if nesterov else buffer
    whole = np.vstack([np.hstack([eye, np.zeros((n, n))]) - rate * step, buffer])
    return float(np.abs(np.linalg.eigvals(whole)).max())


@pytest.mark.parametrize("penalize_bias", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("regularizer", ["none", "l1", "l2", "elastic_net", "group_lasso"])
def test_descent_stops_contracting_at_the_bound_of_some_fold(
    regularizer: str, momentum: float, nesterov: bool, bias: bool, penalize_bias: bool
) -> None:
    """Features are centred, as standardised ones are. The l1 part adds nothing to the curvature."""
    folds = [x - x.mean(axis=0) for x in FOLDS]
    lam, decay = 0.7, 0.1
    knobs = {**FIXED, "regularizer": regularizer, "lambda": lam, "l1_ratio": 0.25, "bias": bias}
    knobs |= {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    rate = exploding_rate(study(folds, {**SPEC, "penalize_bias": penalize_bias}), knobs)
    assert rate is not None
    smooth = {"l2": lam, "elastic_net": 0.75 * lam}.get(regularizer, 0.0)
    hessians = []
    for x in folds:
        x = np.c_[x, np.ones(len(x))] if bias else x
        penalized = np.ones(x.shape[1])
        penalized[3:] = penalize_bias
        hessians.append(x.T @ x / len(x) + np.diag(smooth * penalized + decay))
    for times, explodes in ((1 - 1e-4, False), (1 + 1e-4, True)):
        found = max(radius(h, times * rate, momentum, nesterov) for h in hessians)
        assert (found > 1) == explodes


def test_beside_features_that_are_not_centred_it_explodes_above_for_certain() -> None:
    folds = [x + 1.0 for x in FOLDS]
    rate = exploding_rate(study(folds), {**FIXED, "regularizer": "l2", "lambda": 2.0})
    assert rate is not None
    penalty = np.diag([2.0, 2.0, 2.0, 0.0])
    ones = [np.c_[x, np.ones(len(x))] for x in folds]
    exact = min(2 / largest(x.T @ x / len(x) + penalty) for x in ones)
    assert 0.7 * rate < exact <= rate


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"kind": "mlp"}}, "linear models"),
        ({"task": "classification"}, "squared error"),
        ({"train": {"early_stopping": {"on": "inner"}}}, "early stopping"),
        ({"penalize": ["linear.weight"]}, "some of the weights"),
    ],
)
def test_a_study_that_it_is_not_for_says_why(change: dict[str, Any], words: str) -> None:
    assert no_bound(study(FOLDS)) is None
    other = study(FOLDS, {**SPEC, **change})
    assert words in (no_bound(other) or "") and exploding_rate(other, FIXED) is None


@pytest.mark.parametrize(
    ("knob", "value"),
    [("optimizer", "adam"), ("schedule", "cosine"), ("warmup", 2), ("batch_size", 16)],
)
def test_a_knob_that_it_does_not_know_leaves_it_out(knob: str, value: Any) -> None:
    fixed = study(FOLDS, **{knob: value})
    assert str(value) in (no_bound(fixed) or "")
    assert exploding_rate(study(FOLDS), {**FIXED, knob: value}) is None


def test_clipping_and_a_users_own_regularizer_leave_it_out() -> None:
    for knobs in ({"clip_norm": 1.0}, {"clip_value": 1.0}, {"regularizer": "python:m:R"}):
        assert exploding_rate(study(FOLDS), {**FIXED, "lambda": 0.1, **knobs}) is None
    assert exploding_rate(study(FOLDS), {**FIXED, "batch_size": 60}) is not None


def test_a_study_of_an_older_sweep_has_none() -> None:
    known = study(FOLDS)
    old = StoredStudy("s", "minimize", "mse", {**known.attrs, "curvature": None}, ())
    assert "holds no curvature" in (no_bound(old) or "")


def test_every_built_in_regularizer_is_known() -> None:
    built_in = set(Regularizer.__args__[0].__args__)  # type: ignore[attr-defined]
    # What these add to the curvature depends on the weights: no bound is drawn for them.
    unknown = {"spectral", "orthogonal", "vanishing"}
    assert built_in == {*ADDS_LAMBDA, "elastic_net"} | unknown
