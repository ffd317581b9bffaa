"""Published optima: every optimizer, with proximal steps, solves for lambda and not for a
multiple of it. scikit-learn diabetes, X and y standardised within each fold, KFold(5, shuffle,
seed 0)."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from sklearn.model_selection import KFold

from sweep.spec.exact import EXACT
from sweep.spec.study import Optimizer

from .trials import experiment, merge, train

STUDY = {
    "study": "optimum",
    "data": {"source": "sklearn:diabetes", "standardize_target": "fold"},
    "task": "regression",
    "model": {"kind": "linear"},
    "regularizer": {"choices": ["none", "l1", "l2", "elastic_net"]},
    "lambda": {"low": 1e-5, "high": 10, "log": True},
    "train": {
        "learning_rate": 0.2,
        "momentum": 0.9,
        "batch_size": "full",
        "epochs": 500,
        "dtype": "float64",
    },
    "cross_validation": {"kind": "kfold", "folds": 5, "seed": 0},
}
PUBLISHED = {
    ("none", 1.0): 0.50175495,
    ("l2", 0.00562341325): 0.50100532,
    ("l1", 0.01): 0.50065397,
    ("elastic_net", 0.0177827941): 0.50068864,
}


def test_cross_validated_scores_are_the_published_ones():
    trials = {i: {"regularizer": r, "lambda": lam} for i, (r, lam) in enumerate(PUBLISHED)}
    results = train(experiment(STUDY), trials)
    for i, published in enumerate(PUBLISHED.values()):
        # OLS on nearly collinear columns converges slowly; the others are exact.
        assert results[i].score == pytest.approx(published, abs=1e-4 if i == 0 else 1e-7)


OPTIMIZERS = {
    "sgd": {"momentum": 0.0, "learning_rate": 0.45, "epochs": 1500},
    "heavy ball": {},
    "heavy ball, falling rate": {"schedule": "cosine"},
    "nesterov": {"nesterov": True, "learning_rate": 0.1},
    "normalized_sgd": {
        "optimizer": "normalized_sgd", "momentum": 0.0, "schedule": "cosine", "learning_rate": 0.02
    },
    "normalized_sgd momentum": {
        "optimizer": "normalized_sgd", "schedule": "cosine", "learning_rate": 2e-3
    },
    "rmsprop": {
        "optimizer": "rmsprop", "momentum": 0.0, "schedule": "cosine", "learning_rate": 3e-3,
        "epochs": 1000,
    },
    "rmsprop momentum": {"optimizer": "rmsprop", "schedule": "cosine", "learning_rate": 1e-3},
    "adam": {"optimizer": "adam", "momentum": 0.0, "schedule": "cosine", "learning_rate": 0.03},
    "adamw": {"optimizer": "adamw", "momentum": 0.0, "schedule": "cosine", "learning_rate": 0.03},
}  # fmt: skip


def test_every_optimizer_is_a_case():
    # The exact solver has laws of its own, in test_fista.py.
    assert set(Optimizer.__args__) - {EXACT} == {
        c.get("optimizer", "sgd") for c in OPTIMIZERS.values()
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_reaches_the_lasso_of_scikit_learn(optimizer):
    study = merge(STUDY, train=OPTIMIZERS[optimizer], cross_validation={"folds": 2})
    results = train(experiment(study), {0: {"regularizer": "l1", "lambda": 0.05}})
    expected, nonzero = _scikit_learn(Lasso(0.05, tol=1e-12), folds=2)
    np.testing.assert_allclose(results[0].fold_scores, expected, rtol=1e-5)
    assert results[0].nonzero == nonzero


def test_elastic_net_is_that_of_scikit_learn():
    results = train(experiment(STUDY), {0: {"regularizer": "elastic_net", "lambda": 0.2}})
    expected, nonzero = _scikit_learn(ElasticNet(0.2, l1_ratio=0.5, tol=1e-12))
    np.testing.assert_allclose(results[0].fold_scores, expected, rtol=1e-7)
    assert results[0].nonzero == nonzero


def ridge(lam):
    """scikit-learn's sum of squares + alpha ||w||^2 is 2n times squared error / 2 + lambda R."""
    return lambda n: Ridge(lam * n, tol=1e-12)


def test_spectral_on_a_matrix_of_one_row_is_the_ridge_of_scikit_learn():
    results = train(experiment(STUDY_SPECTRAL), {0: {"regularizer": "spectral", "lambda": 0.05}})
    expected, _ = _scikit_learn(ridge(0.05))
    np.testing.assert_allclose(results[0].fold_scores, expected, rtol=1e-7)


STUDY_SPECTRAL = merge(STUDY, regularizer={"choices": ["none", "spectral"]})


@pytest.mark.parametrize("decoupled, lam", [(False, 0.5), (True, 0.05)])
def test_decoupled_decay_under_momentum_ends_at_a_weaker_ridge(decoupled, lam):
    """The buffer sums gradients to 1 / (1 - momentum) times themselves, and decoupled decay not."""
    decay = {"weight_decay": 0.5, "decoupled_weight_decay": decoupled}
    study = merge(STUDY, model={"kind": "linear", "bias": False}, train=decay)
    results = train(experiment(study), {0: {"regularizer": "none", "lambda": 1.0}})
    expected, _ = _scikit_learn(ridge(lam))
    np.testing.assert_allclose(results[0].fold_scores, expected, rtol=1e-7)


def _scikit_learn(made, folds=5):
    x, y = load_diabetes(return_X_y=True)
    scores, nonzero = [], []
    for fit, test in KFold(folds, shuffle=True, random_state=0).split(x):
        mean, scale, centre, spread = x[fit].mean(0), x[fit].std(0), y[fit].mean(), y[fit].std()
        model = made(len(fit)) if callable(made) else made
        model.fit((x[fit] - mean) / scale, (y[fit] - centre) / spread)
        error = (y[test] - centre) / spread - model.predict((x[test] - mean) / scale)
        scores.append(np.mean(error**2))
        nonzero.append(np.count_nonzero(model.coef_))
    return scores, nonzero
