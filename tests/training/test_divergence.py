"""Divergence against exact answers: the stability bounds of gradient descent."""

import numpy as np
import pytest

from .trials import experiment, merge, train

H = 4.0242107502
"""Largest eigenvalue of X'X/n: diabetes of scikit-learn, X and y standardised with ddof 0."""
DIABETES = {
    "study": "boundary",
    "data": {"source": "python:toy_data:diabetes_twice", "standardize": "none"},
    "task": "regression",
    "model": {"kind": "linear", "bias": False},
    "train": {
        "learning_rate": {"low": 1e-6, "high": 1e6, "log": True},
        "batch_size": "full",
        "epochs": 700,
        "dtype": "float64",
    },
    "cross_validation": {"kind": "column"},
}
FAR = {"kind": "linear", "bias": False, "init": {"normal": 10.0}}
CASES = {
    "none": ({}, 2 / H),
    # The threshold damps an unstable mode as long as it is small: start away from 0.
    "l1": ({"regularizer": "l1", "lam": 1e-3, "model": FAR}, 2 / H),
    "l2": ({"regularizer": "l2", "lam": 1.5}, 2 / (H + 1.5)),
    "elastic_net": (
        {"regularizer": "elastic_net", "lam": 1.5 / 0.99, "l1_ratio": 0.01, "model": FAR},
        2 / (H + 1.5),
    ),
    # Of a matrix with one row the largest singular value is its length.
    "spectral": ({"regularizer": "spectral", "lam": 1.5}, 2 / (H + 1.5)),
    "weight_decay": ({"train": {"weight_decay": 1.5}}, 2 / (H + 1.5)),
    "decoupled": (
        {"train": {"momentum": 0.9, "weight_decay": 1.5, "decoupled_weight_decay": True}},
        2 * 1.9 / (H + 1.9 * 1.5),
    ),
    "heavy ball with decay": (
        {"train": {"momentum": 0.9, "weight_decay": 1.5}},
        2 * 1.9 / (H + 1.5),
    ),
    "heavy ball": ({"train": {"momentum": 0.9}}, 2 * 1.9 / H),
    "nesterov": ({"train": {"momentum": 0.9, "nesterov": True}}, 2 * 1.9 / (H * 2.8)),
}


@pytest.mark.parametrize("engine", ["lanes", "reference"])
@pytest.mark.parametrize(
    "near, epochs", [(0.03, 250), pytest.param(0.01, 700, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", CASES)
def test_diverges_exactly_above_the_bound(case, near, epochs, engine):
    """Full-batch gradient descent on squared error / 2 + lambda/2 ||w||^2 is stable iff
    lr < 2 / (h + lambda), times (1 + m) with heavy ball, (1 + m) / (1 + 2m) with Nesterov. Decay
    that is decoupled from heavy ball is not slowed by it: lr < 2 (1 + m) / (h + (1 + m) lambda)."""
    changes, bound = CASES[case]
    if engine == "reference" and case not in ("none", "nesterov"):
        pytest.skip("the engines agree on these; one is enough")
    exp = experiment(merge(merge(DIABETES, train={"epochs": epochs}), **changes))
    rates = {0: (1 - near) * bound, 1: (1 + near) * bound}
    results = train(exp, {i: {"learning_rate": rate} for i, rate in rates.items()}, engine)
    assert results[0].failure is None and results[0].fold_scores
    assert results[1].failure is not None
    assert results[1].failure.reason == "loss_explosion"


@pytest.mark.parametrize("engine", ["lanes", "reference"])
def test_a_hundredth_above_the_bound_it_takes_as_many_steps_as_the_unstable_mode(engine):
    """Its loss grows 1.0404-fold a step: 1e6-fold needs 350 of them and more."""
    rates = {0: 0.99 * 2 / H, 1: 1.01 * 2 / H}
    results = train(
        experiment(DIABETES), {i: {"learning_rate": rate} for i, rate in rates.items()}, engine
    )
    assert results[0].failure is None and results[0].fold_scores
    assert results[1].failure.reason == "loss_explosion"
    assert 360 <= results[1].failure.step <= 420


@pytest.mark.parametrize("dtype, step", [("float32", 39), ("float64", 321)])
def test_first_nonfinite_loss_at_twice_the_bound(dtype, step):
    study = merge(
        DIABETES,
        score="mae",  # the mean squared error, twice the loss, would overflow a step earlier
        train={"dtype": dtype},
        divergence={"loss_growth": None, "gradient_growth": None},
    )
    failure = train(experiment(study), {0: {"learning_rate": 4 / H}})[0].failure
    assert failure is not None and failure.reason == "nonfinite_loss"
    assert abs(failure.step - step) <= 2
    assert failure.loss is None and failure.fold == 0


@pytest.mark.parametrize(
    "cure", [{"clip_norm": 1.0}, {"clip_layer": 1.0}, {"optimizer": "normalized_sgd"}], ids=str
)
def test_gradient_descent_with_bounded_steps_oscillates_above_the_bound_without_diverging(cure):
    study = merge(DIABETES, train=cure)
    result = train(experiment(study), {0: {"learning_rate": 1.5 * 2 / H}})[0]
    assert result.failure is None


LOGISTIC = {
    **DIABETES,
    "data": {"source": "python:toy_data:separable_twice", "standardize": "none"},
    "task": "classification",
}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    "near, epochs", [(0.05, 900), pytest.param(0.02, 2500, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("fails", [False, True])
def test_logistic_with_decay_outside_the_clipping_diverges_iff_rate_times_lambda_exceeds_2(
    clip, fails, near, epochs
):
    times = 1 + near if fails else 1 - near
    study = merge(LOGISTIC, train={"weight_decay": 2.0, "clip_norm": clip, "epochs": epochs})
    result = train(experiment(study), {0: {"learning_rate": times * 2 / 2.0}})[0]
    assert (result.failure is not None) == fails


def test_logistic_with_the_penalty_inside_the_clipped_loss_stays_bounded():
    study = merge(LOGISTIC, regularizer="l2", lam=2.0, train={"clip_norm": 1.0})
    assert train(experiment(study), {0: {"learning_rate": 1.1}})[0].failure is None


def test_a_failure_tells_what_happened():
    study = merge(DIABETES, model={"kind": "mlp", "hidden": [4]})
    failure = train(experiment(study), {0: {"learning_rate": 1e4}})[0].failure
    assert failure is not None
    record = failure.as_json()
    assert set(record) >= {
        "kind", "reason", "fold", "epoch", "step", "layer", "loss", "grad_norm", "message",
    }  # fmt: skip
    assert failure.layer in failure.message and str(failure.step) in failure.message
    assert len(failure.losses) == len(failure.grad_norms) == min(100, failure.step + 1)


DIGITS = {
    "study": "dying",
    "data": {"source": "sklearn:digits"},
    "task": "classification",
    "model": {"kind": "mlp", "hidden": [64, 64]},
    "train": {
        "learning_rate": {"low": 1e-3, "high": 3.0, "log": True},
        "momentum": 0.9,
        "batch_size": 64,
        "epochs": 6,
        "clip_norm": {"choices": [None, 1.0]},
    },
    "cross_validation": {"kind": "stratified", "folds": 5},
}


def test_a_network_that_dies_of_an_explosion_has_diverged_and_one_that_learns_has_not():
    """At rate 1 the loss reaches 1e5 in the first epoch, the units die, and it falls back to
    log(10), that of a constant: nothing is learned any more. At rate 3 it reaches 1e11."""
    rates = {0: 0.05, 1: 0.2, 2: 1.0, 3: 3.0}
    trials = {i: {"learning_rate": rate, "clip_norm": None} for i, rate in rates.items()}
    results = train(experiment(DIGITS), trials)
    assert [results[i].failure is not None for i in rates] == [False, False, True, True]
    assert results[2].failure.reason == results[3].failure.reason == "loss_explosion"
    assert "never came back" in results[2].failure.message


def test_a_huge_transient_that_decays_is_not_a_divergence():
    """Started far away, stable descent passes through enormous losses."""
    far = {"kind": "linear", "bias": False, "init": 1e4}
    results = train(experiment(merge(DIABETES, model=far)), {0: {"learning_rate": 0.98 * 2 / H}})
    assert results[0].failure is None


@pytest.mark.parametrize("engine", ["lanes", "reference"])
def test_a_score_that_overflows_is_a_divergence_with_the_last_steps_before_it(engine, scored):
    """After the last update the squares' sum overflows, where the loss before it did not yet; and
    whatever came of the steps after it.
    """
    study = merge(
        DIABETES,
        train={"dtype": "float32", "epochs": {"choices": [5, 200]}},
        divergence={"loss_growth": None, "gradient_growth": None},
    )
    # The one that ends sooner leaves its slots to nobody.
    trials = {i: {"learning_rate": (4 + i) / H, "epochs": 200} for i in range(1, 5)}
    trials = {0: {"learning_rate": 0.1 / H, "epochs": 5}, **trials}
    failure = train(experiment(study), trials, engine)[4].failure
    assert failure.reason == "nonfinite_score"
    assert failure.epoch == failure.step - 1, "an epoch is one step; the score comes after it"
    assert len(failure.losses) == failure.step and failure.losses[-1] == failure.loss
    assert failure.loss > 1e34 and failure.losses[0] < 1
    alone = train(experiment(study), {4: trials[4]}, "reference")[4].failure
    np.testing.assert_allclose(failure.losses, alone.losses, rtol=1e-3)
