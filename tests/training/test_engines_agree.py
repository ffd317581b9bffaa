"""The law of the batched engine: a member trained among many others, some of them diverging, ends
with the reference's scores, and diverges at the same step for the same reason."""

import numpy as np
import pytest

from sweep.problem.regularizers import REGULARIZERS
from sweep.spec.exact import EXACT
from sweep.spec.models import BUILT_IN
from sweep.spec.study import BuiltInRegularizer, Optimizer, TrainSpec
from sweep.training import lanes_stepper
from sweep.training.lanes_step import LaneStep

from .trials import BASE, experiment, merge, train

RATES = [0.03, 1e10, 0.1, 1e300, 0.01]
"""Steady trials with diverging ones between them."""

SEQUENCES = {"data": {"source": "python:toy_data:sequences"}, "task": "regression"}
IMAGES = {"data": {"source": "python:toy_data:images"}}
RECURRENT = {"model": {"kind": "rnn", "hidden": 5}, **SEQUENCES}
MODELS = {
    "linear": {"model": {"kind": "linear"}},
    "linear regression": {
        "model": {"kind": "linear"},
        "data": {"source": "python:toy_data:numbers"},
        "task": "regression",
    },
    "binary": {"model": {"kind": "linear"}, "data": {"source": "python:toy_data:two_classes"}},
    "weighted": {
        "model": {"kind": "mlp", "hidden": [4]},
        "data": {"source": "python:toy_data:weighted"},
        "task": "regression",
    },
    "mlp": {"model": {"kind": "mlp", "hidden": [6, 5]}},
    "mlp dropout": {"model": {"kind": "mlp", "hidden": [8], "dropout": 0.3}},
    "mlp batch norm": {"model": {"kind": "mlp", "hidden": [6], "normalization": "batch"}},
    "mlp layer norm": {"model": {"kind": "mlp", "hidden": [6], "normalization": "layer"}},
    "cnn": {"model": {"kind": "cnn", "channels": [3], "hidden": 5}, **IMAGES},
    "cnn batch norm": {
        "model": {"kind": "cnn", "channels": [3], "hidden": 5, "normalization": "batch"},
        **IMAGES,
    },
    "rnn": RECURRENT,
    "gru": {"model": {"kind": "gru", "hidden": 5}, **SEQUENCES},
    "lstm": {"model": {"kind": "lstm", "hidden": 5, "layers": 2, "dropout": 0.1}, **SEQUENCES},
    "custom": {"model": {"kind": "python:toy_data:Residual", "width": 7}},
}
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd"},
    "heavy ball": {"optimizer": "sgd", "momentum": 0.8},
    "nesterov": {"optimizer": "sgd", "momentum": 0.8, "nesterov": True},
    "weight decay": {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.01},
    "adam": {"optimizer": "adam"},
    "adam decay": {"optimizer": "adam", "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.01},
    "decoupled": {"momentum": 0.5, "weight_decay": 0.01, "decoupled_weight_decay": True},
    "rmsprop decoupled": {
        "optimizer": "rmsprop",
        "weight_decay": 0.01,
        "decoupled_weight_decay": True,
    },
    "normalized": {"optimizer": "normalized_sgd", "weight_decay": 0.01},
    "normalized momentum": {"optimizer": "normalized_sgd", "momentum": 0.7},
    "rmsprop": {"optimizer": "rmsprop"},
    "rmsprop momentum": {"optimizer": "rmsprop", "momentum": 0.7},
}
PENALTIES = {
    "none": {"regularizer": "none"},
    "l1": {"regularizer": "l1", "lam": 0.02},
    "l2": {"regularizer": "l2", "lam": 0.1},
    "elastic_net": {"regularizer": "elastic_net", "lam": 0.05, "l1_ratio": 0.3},
    "group_lasso": {"regularizer": "group_lasso", "lam": 0.02},
    "spectral": {"regularizer": "spectral", "lam": 0.1},
    "orthogonal": {"regularizer": "orthogonal", "lam": 0.1},
    "vanishing": {"regularizer": "vanishing", "lam": 0.5, **RECURRENT},
    "python": {"regularizer": "python:toy_data:Cauchy", "lam": 0.05},
}
CLIPPING = {
    "norm": {"clip_norm": 0.5},
    "value": {"clip_value": 0.05},
    "both": {"clip_norm": 0.1, "clip_value": 0.05},
    "layer": {"clip_layer": 0.05},
    "percentile": {"clip_percentile": 30},
    "all": {"clip_norm": 0.1, "clip_value": 0.05, "clip_layer": 0.07, "clip_percentile": 60},
}
SCHEDULES = {
    "cosine": {"schedule": "cosine"},
    "warm cosine": {"schedule": "cosine", "warmup": 1.5},
    "step": {"schedule": {"kind": "step", "every": 2, "factor": 0.3}},
    "full batch": {"batch_size": "full"},
    "large batch": {"batch_size": 41},
    "early stopping": {"early_stopping": {"patience": 1}, "epochs": 8},
    "early stopping on the fold": {"early_stopping": {"patience": 2, "on": "fold"}, "epochs": 8},
}


def test_every_entry_is_a_case():
    assert set(BUILT_IN) <= {case["model"]["kind"] for case in MODELS.values()}
    # The exact solver has laws of its own, in test_fista.py.
    tested = {c.get("optimizer", "sgd") for c in OPTIMIZERS.values()}
    assert {*Optimizer.__args__} - {EXACT} == tested
    assert {*REGULARIZERS, "none", "vanishing"} == set(BuiltInRegularizer.__args__)
    assert set(BuiltInRegularizer.__args__) <= set(PENALTIES)
    kinds = {name for name in TrainSpec.model_fields if name.startswith("clip_")}
    assert kinds == {name for case in CLIPPING.values() for name in case}


def assert_agree(study, trials=None, slots=64, float64_tolerance=1e-9):
    exp = experiment(study)
    trials = trials or {i: {"learning_rate": rate} for i, rate in enumerate(RATES)}
    lanes = train(exp, trials, "lanes", slots)
    alone = train(exp, trials, "reference")
    assert lanes.keys() == alone.keys() == trials.keys()
    assert_same(exp, lanes, alone, float64_tolerance)
    return alone


def assert_same(exp, lanes, alone, float64_tolerance=1e-9):
    """The results of the same trials but for rounding."""
    # In float32 the residuals of a model that fits nearly exactly are rounding to some part.
    exact = exp.spec.train.dtype == "float64"
    tolerance, least = (float64_tolerance, 1e-12) if exact else (1e-4, 1e-9)
    for number, one in alone.items():
        many = lanes[number]
        if one.failure is not None:
            assert many.failure is not None, number
            same = ("kind", "reason", "fold", "step", "epoch", "layer")
            for name in same:
                assert getattr(many.failure, name) == getattr(one.failure, name), (number, name)
            continue
        assert many.failure is None, (number, many.failure)
        for name in ("fold_scores", "train_scores"):
            np.testing.assert_allclose(
                getattr(many, name), getattr(one, name), rtol=tolerance, atol=least
            )
        assert many.more_scores.keys() == one.more_scores.keys()
        for name, scores in one.more_scores.items():
            np.testing.assert_allclose(many.more_scores[name], scores, rtol=tolerance)
        assert many.nonzero == one.nonzero
        assert many.intermediate.keys() == one.intermediate.keys()
        np.testing.assert_allclose(
            list(many.intermediate.values()), list(one.intermediate.values()), rtol=tolerance
        )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model(model, dtype):
    rates = dict(enumerate(RATES))
    if "norm" in model or model == "custom":
        # Normalisation keeps huge weights going; where they overflow is up to rounding.
        del rates[1]
    results = assert_agree(
        merge(BASE, **MODELS[model], train={**BASE["train"], "dtype": dtype}),
        {i: {"learning_rate": rate} for i, rate in rates.items()},
    )
    assert any(result.fold_scores for result in results.values())


@pytest.mark.parametrize("model", ["weighted", "mlp dropout", "mlp batch norm", "cnn", "rnn"])
def test_a_traced_step_is_the_step_that_was_traced(model, monkeypatch, tmp_path):
    """Eager training goes on with the operations of the traced step, in the same order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    study = merge(BASE, **MODELS[model], regularizer="l1", lam=0.01)
    trials = {i: {"learning_rate": rate} for i, rate in enumerate(RATES)}
    results, mapped, steps = [], [], []
    own = LaneStep.__call__
    monkeypatch.setattr(LaneStep, "__call__", lambda *a: (mapped.append(1), own(*a))[1])
    for worth in (0.0, 1e9):
        monkeypatch.setattr(lanes_stepper, "TRACE_WORTH_SECONDS", worth)
        results.append(train(experiment(study), trials, compile_when="kept"))
        steps.append(len(mapped))
    assert steps[0] == 1 < steps[1]
    assert results[0] == results[1]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_with_every_regularizer(optimizer, penalty):
    train = {**BASE["train"], **OPTIMIZERS[optimizer], "epochs": 3}
    assert_agree(merge(BASE, **PENALTIES[penalty], train=train))


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("optimizer", ["heavy ball", "adamw"])
def test_every_clipping(clipping, optimizer):
    train = {**BASE["train"], **OPTIMIZERS[optimizer], **CLIPPING[clipping]}
    assert_agree(merge(BASE, regularizer="elastic_net", lam=0.01, train=train))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule(schedule):
    assert_agree(merge(BASE, train={**BASE["train"], **SCHEDULES[schedule]}))


@pytest.mark.parametrize("more", [[], ["accuracy"]], ids=["one score", "two scores"])
def test_an_earlier_epochs_weights_are_scored_again_by_every_score(more):
    """Where training is too long the best epoch is not the last, whose score is known."""
    study = merge(BASE, scores=more, train={"epochs": 40, "early_stopping": {"patience": 3}})
    results = assert_agree(study, {0: {"learning_rate": 0.8}, 1: {"learning_rate": 0.4}})
    for result in results.values():
        assert list(result.more_scores) == more
        last = result.intermediate[max(result.intermediate)]
        assert abs(result.score - last) > 1e-3
