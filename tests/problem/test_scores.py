"""Scores against scikit-learn's own scorers on fitted scikit-learn models."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import get_scorer, get_scorer_names
from torch.func import vmap

from sweep.errors import RequestError, SpecError, SweepError
from sweep.problem.scores import CLASSIFICATION, LOSSES, REGRESSION, check_score, get_score

KINDS = ("regression", "binary", "multiclass")
DIRECT = (
    "log_loss",
    "neg_log_loss",
    "accuracy",
    "mse",
    "neg_mean_squared_error",
    "rmse",
    "mae",
    "r2",
)


def fitted(kind: str) -> tuple[Any, Any, Any, Any, list[Any] | None]:
    """(a fitted model, X, y, the model's outputs (n, K), classes)."""
    if kind == "regression":
        X, y = load_diabetes(return_X_y=True)
        model = LinearRegression().fit(X, y)
        return model, X, y, model.predict(X)[:, None], None
    X, y = load_iris(return_X_y=True)
    X = X[:, :2]
    if kind == "binary":
        X, y = X[50:], y[50:] - 1
    model = LogisticRegression().fit(X, y)
    return model, X, y, model.decision_function(X).reshape(len(X), -1), sorted(set(y))


def own_names(kind: str) -> tuple[str, ...]:
    return REGRESSION if kind == "regression" else CLASSIFICATION


def all_names(kind: str) -> list[str]:
    """Every score that does not refuse this kind of target."""
    classes = {"regression": None, "binary": [0, 1], "multiclass": [0, 1, 2]}[kind]
    names = []
    for name in (*own_names(kind), *get_scorer_names()):
        try:
            get_score(name, kind, classes)
        except SpecError:
            continue
        names.append(name)
    return names


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_of_outputs_is_scikit_learns_score_of_the_model(kind: str, weighted: bool):
    model, X, y, outputs, classes = fitted(kind)
    weights = np.random.default_rng(0).uniform(0.5, 2, len(y)) if weighted else None
    compared = 0
    for name in all_names(kind):
        library_name = LOSSES.get(name, name)
        if (name, kind) == ("roc_auc", "multiclass"):
            library_name = "roc_auc_ovr"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = get_scorer(library_name)(model, X, y, sample_weight=weights)
        except (TypeError, ValueError) as error:
            words = "takes no row weights" if isinstance(error, TypeError) else "sample_weight"
            with pytest.raises(SweepError, match=words):
                get_score(name, kind, classes).evaluate(outputs, y, weights)
            continue
        value = get_score(name, kind, classes).evaluate(outputs, y, weights)
        assert value == pytest.approx(-expected if name in LOSSES else expected, nan_ok=True), name
        compared += 1
    assert compared >= {"regression": 15, "binary": 30, "multiclass": 25}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_scorer_of_scikit_learn_is_taken_or_refused_in_a_sentence(kind: str):
    classes = {"regression": None, "binary": [0, 1], "multiclass": [0, 1, 2]}[kind]
    for name in get_scorer_names():
        try:
            assert get_score(name, kind, classes).direction == "maximize"
        except SpecError as error:
            assert str(error).startswith("score: ") and str(error).endswith(".")


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_direct_formula_equals_scikit_learn(kind: str, weighted: bool):
    _, _, y, outputs, classes = fitted(kind)
    weights = np.random.default_rng(0).uniform(0.5, 2, len(y)) if weighted else None
    with_formula = [name for name in all_names(kind) if get_score(name, kind, classes).tensor]
    assert set(DIRECT) & set(own_names(kind)) <= set(with_formula)
    for name in with_formula:
        score = get_score(name, kind, classes)
        assert score.tensor is not None
        w = torch.ones(len(y), dtype=torch.float64) if weights is None else torch.tensor(weights)
        direct = float(score.tensor(torch.tensor(outputs), torch.tensor(y), w))
        assert direct == pytest.approx(score.evaluate(outputs, y, weights), rel=1e-12), name


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_do_not_count_even_if_not_finite(kind: str):
    _, _, y, outputs, classes = fitted(kind)
    w = torch.ones(len(y), dtype=torch.float64)
    w[10:] = 0
    padded = torch.tensor(outputs)
    padded[10:] = math.nan
    for name in own_names(kind):
        score = get_score(name, kind, classes)
        if score.tensor is not None:
            value = float(score.tensor(padded, torch.tensor(y), w))
            expected = float(score.tensor(padded[:10], torch.tensor(y[:10]), w[:10]))
            assert value == pytest.approx(expected, rel=1e-12), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_vmapped_formula_equals_the_looped_one(kind: str):
    _, _, y, outputs, classes = fitted(kind)
    generator = torch.Generator().manual_seed(0)
    batch = torch.tensor(outputs) + torch.randn(3, *outputs.shape, generator=generator).double()
    w = torch.rand(3, len(y), generator=generator, dtype=torch.float64)
    for name in own_names(kind):
        formula = get_score(name, kind, classes).tensor
        if formula is not None:
            together = vmap(formula, in_dims=(0, None, 0))(batch, torch.tensor(y), w)
            looped = torch.stack([formula(batch[i], torch.tensor(y), w[i]) for i in range(3)])
            torch.testing.assert_close(together, looped)


def test_log_loss_of_a_confident_mistake_is_not_clipped():
    """scikit-learn clips probabilities at 2e-16, a loss of 36; the loss of logit -100 is 100."""
    score = get_score("log_loss", "binary", [0, 1])
    assert score.tensor is not None
    assert float(score.tensor(torch.tensor([[-100.0]]), torch.tensor([1]), torch.ones(1))) == 100


def test_log_loss_is_defined_where_a_class_is_missing():
    score = get_score("log_loss", "multiclass", ["a", "b", "c"])
    value = score.evaluate(np.zeros((4, 3)), np.array([0, 1, 1, 0]))
    assert value == pytest.approx(math.log(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_not_finite_gives_the_worst_infinity(kind: str, bad: float):
    _, _, y, outputs, classes = fitted(kind)
    outputs = outputs.copy()
    outputs[3, 0] = bad
    for name in own_names(kind):
        score = get_score(name, kind, classes)
        worst = math.inf if score.direction == "minimize" else -math.inf
        assert score.evaluate(outputs, y) == worst, name
        if score.tensor is not None:
            w = torch.ones(len(y), dtype=torch.float64)
            assert float(score.tensor(torch.tensor(outputs), torch.tensor(y), w)) == worst, name


def test_an_undefined_score_of_finite_outputs_is_nan():
    auc = get_score("roc_auc", "binary", [0, 1])
    assert math.isnan(auc.evaluate(np.arange(5.0)[:, None], np.ones(5, dtype=int)))
    r2 = get_score("r2", "regression", None)
    assert r2.tensor is not None
    assert math.isnan(r2.evaluate(np.ones((1, 1)), np.ones(1)))
    assert math.isnan(r2.tensor(torch.ones(1, 1), torch.ones(1), torch.ones(1)))


def test_what_scikit_learn_refuses_is_an_error_with_its_reason():
    score = get_score("roc_auc", "multiclass", [0, 1, 2])
    with pytest.raises(SweepError, match=r"score: roc_auc cannot be computed: .*classes"):
        score.evaluate(np.eye(3)[[0, 1, 0, 1]], np.array([0, 1, 0, 1]))


@pytest.mark.parametrize("outputs", [[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]], ids=["perfect", "not"])
def test_r2_of_a_constant_target_is_scikit_learns(outputs: list[float]):
    score, f = get_score("r2", "regression", None), np.array(outputs)[:, None]
    assert score.tensor is not None
    direct = float(score.tensor(torch.tensor(f), torch.full((3,), 2.0), torch.ones(3).double()))
    assert direct == score.evaluate(f, np.full(3, 2.0))


def test_own_names_carry_their_direction():
    for kind in KINDS:
        for name in own_names(kind):
            expected = "minimize" if name in LOSSES else "maximize"
            assert (
                get_score(name, kind, [0, 1, 2][: 2 + (kind == "multiclass")]).direction == expected
            )


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("logloss", "classification", "Did you mean log_loss?"),
        ("acuracy", "classification", "Did you mean accuracy?"),
        ("rsme", "regression", "Did you mean rmse?"),
        ("neg_mean_squared_eror", "regression", "Did you mean neg_mean_squared_error?"),
        ("", "regression", "Allowed: mse, rmse, mae, r2"),
        ("mse", "classification", "score: mse is for regression, this task is classification"),
        (
            "f1_macro",
            "regression",
            "score: f1_macro is for classification, this task is regression",
        ),
        ("neg_max_error", "classification", "is for regression"),
    ],
)
def test_a_score_that_does_not_exist_or_fit_is_refused(name: str, task: str, words: str):
    with pytest.raises(RequestError) as caught:
        check_score(name, task)
    assert words in str(caught.value)


def test_a_two_class_score_of_three_classes_is_refused_with_the_reason():
    with pytest.raises(SpecError, match="f1 does not fit multiclass targets"):
        get_score("f1", "multiclass", [0, 1, 2])
