"""No false alarm: healthy trainings of every built-in model, drawn at random."""

from __future__ import annotations

import random

import pytest

from sweep.spec.models import BUILT_IN

from .test_divergence import DIABETES, LOGISTIC, H
from .trials import BASE, experiment, merge, train

SEQUENCES = {"data": {"source": "python:toy_data:sequences"}, "task": "regression"}
SHAPES = {
    "cnn": {"data": {"source": "python:toy_data:images"}},
    "rnn": SEQUENCES,
    "gru": SEQUENCES,
    "lstm": SEQUENCES,
}
MODELS = {
    "linear": {},
    "mlp": {"hidden": [6], "normalization": {"choices": ["none", "layer"]}},
    "cnn": {"channels": [2], "hidden": 4},
    "rnn": {"hidden": 5, "activation": {"choices": ["tanh", "relu"]}},
    "gru": {"hidden": 5},
    "lstm": {"hidden": 5},
}
# The optimizer and what learning rates are harmless under it, on standardised features.
RATES = {"sgd": (1e-3, 0.1), "adam": (1e-4, 1e-2), "adamw": (1e-4, 1e-2), "rmsprop": (1e-4, 1e-2)}


def false_alarms(kind: str, n: int, seed: int) -> list[str]:
    """Trains `n` random settings on two folds each; the diagnoses of those that were stopped."""
    draw, found = random.Random(f"{kind}-{seed}"), []
    for optimizer, (low, high) in RATES.items():
        study = merge(
            BASE,
            **SHAPES.get(kind, {}),
            model={"kind": kind, **MODELS[kind]},
            regularizer={"choices": ["none", "l1", "l2"]},
            lam={"low": 1e-6, "high": 0.1, "log": True},
            train={
                "optimizer": optimizer,
                "learning_rate": {"low": low, "high": high, "log": True},
                "clip_norm": {"choices": [None, 1.0]},
                "momentum": 0.9 if optimizer == "sgd" else 0.0,
                "dtype": "float32",
                "epochs": 3,
            },
            cross_validation={"kind": "kfold", "folds": 2},
            seed=seed,
        )
        exp = experiment(study)
        trials = {i: drawn(exp.spec.space(), draw) for i in range(-(-n // len(RATES)))}
        results = train(exp, trials)
        found += [str(r.failure.message) for r in results.values() if r.failure is not None]
        assert len(results) == len(trials)
    return found


def drawn(space, draw: random.Random) -> dict:
    from sweep.spec import Choices, encode_choice

    return {
        name: encode_choice(draw.choice(knob.choices))
        if isinstance(knob, Choices)
        else knob.low * (knob.high / knob.low) ** draw.random()
        for name, knob in space.items()
    }


def test_every_built_in_model_has_healthy_cases():
    assert set(MODELS) == set(BUILT_IN)


@pytest.mark.parametrize("kind", MODELS)
def test_healthy_trainings_raise_no_alarm(kind):
    """36 settings x 2 folds a model: more than 200 settings in all."""
    assert false_alarms(kind, 36, seed=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("kind", MODELS)
def test_many_healthy_trainings_raise_no_alarm(kind, seed):
    assert false_alarms(kind, 100, seed) == []


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_a_stable_run_may_have_huge_losses(scale):
    """0.98 of the bound, started far away: the loss begins enormous and every step is watched."""
    far = {"kind": "linear", "bias": False, "init": {"normal": scale}}
    study = merge(DIABETES, model=far, train={"momentum": 0.9, "epochs": 300})
    result = train(experiment(study), {0: {"learning_rate": 0.98 * 2 * 1.9 / H}})[0]
    assert result.failure is None


def test_an_unclipped_stable_logistic_run_with_huge_losses_completes():
    """lr * lambda = 1.96 with decay outside the gradient: the weights swing about 0, the loss with
    them, above 1e5 and down to 1 and back."""
    study = merge(
        LOGISTIC,
        model={"kind": "linear", "bias": False, "init": {"normal": 3e5}},
        train={"weight_decay": 2.0, "epochs": 600},
    )
    result = train(experiment(study), {0: {"learning_rate": 0.98}})[0]
    losses = list(result.intermediate.values())
    assert result.failure is None and max(losses) > 1e5 and losses[-1] < 20
