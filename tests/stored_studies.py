"""Databases with studies whose answers are known, made without training anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from sweep.store.storage import Finished, Store, new_worker

SPACE = {
    "regularizer": CategoricalDistribution(["none", "l1", "l2"]),
    "lambda": FloatDistribution(1e-6, 0.1, log=True),
    "learning_rate": FloatDistribution(1e-3, 3.0, log=True),
    "clip_norm": CategoricalDistribution([None, 1.0]),
}
ATTRS: dict[str, Any] = {
    "spec": {
        "study": "digits",
        "cross_validation": {"kind": "stratified", "folds": 5},
        "train": {"early_stopping": None},
    },
    "knobs": {
        "fixed": {"optimizer": "sgd", "epochs": 20, "batch_size": 64, "momentum": 0.9},
        "varied": sorted(SPACE),
    },
    "score": "log_loss",
    "data": {"sha256": "0" * 64, "rows": 1797, "folds": list("abcde")},
}


def complete(
    params: Mapping[str, Any], fold_scores: Sequence[float], nonzero: int = 100
) -> dict[str, Any]:
    """A COMPLETE trial with these fold scores."""
    mean = math.fsum(fold_scores) / len(fold_scores)
    variance = math.fsum((s - mean) ** 2 for s in fold_scores) / (len(fold_scores) - 1)
    return {
        "params": dict(params),
        "state": TrialState.COMPLETE,
        "value": mean,
        "attrs": {
            "fold_scores": list(fold_scores),
            "score_se": math.sqrt(variance / len(fold_scores)),
            "train_scores": [s * 0.9 for s in fold_scores],
            "nonzero": [nonzero] * len(fold_scores),
        },
        "intermediate": {0: mean * 2, 1: mean},
    }


def diverged(params: Mapping[str, Any], reason: str = "gradient_explosion") -> dict[str, Any]:
    """A FAIL trial with its diagnosis."""
    losses = [2.0 * 1.3**i for i in range(80)] + [None]
    return {
        "params": dict(params),
        "state": TrialState.FAIL,
        "value": None,
        "attrs": {
            "failure": {
                "kind": "divergence",
                "reason": reason,
                "fold": 2,
                "epoch": 3,
                "step": 80,
                "layer": "layers.0.weight",
                "loss": None,
                "grad_norm": 1.5e19,
                "message": "the norm of the gradient exploded in fold 2 at step 80 (epoch 3), "
                "first in layers.0.weight",
                "advice": "the norm grew 1.5x a step for 80 steps from layer layers.0.weight: "
                f"lower learning_rate below {0.8 * params.get('learning_rate', 1.0):.3g}",
                "losses": losses,
                "grad_norms": [1e3 * 1.5**i for i in range(81)],
            }
        },
        "intermediate": {},
    }


def digits_trials() -> list[dict[str, Any]]:
    """l1 and l2 near each other, none a little worse, learning rates above 0.5 diverged."""
    trials = []
    for i in range(40):
        regularizer = ("none", "l1", "l2")[i % 3]
        lam = 10 ** (-6 + 5 * ((i * 7) % 40) / 40)
        rate = 10 ** (-3 + 3.4 * ((i * 11) % 40) / 40)
        params = {
            "regularizer": regularizer,
            "lambda": lam,
            "learning_rate": rate,
            "clip_norm": (None, 1.0)[i % 2],
        }
        if rate > 0.5:
            trials.append(diverged(params, "nonfinite_loss" if i % 4 == 0 else "loss_explosion"))
            continue
        center = 0.1 + 0.02 * (regularizer == "none") + 0.01 * abs(math.log10(lam) + 3)
        scores = [center + 0.01 * math.sin(3 * i + 2 * k) + 0.02 * math.cos(k) for k in range(5)]
        trials.append(complete(params, scores, nonzero=int(4000 - 3000 * (lam > 1e-3))))
    return trials


def fill(
    url: str,
    name: str = "digits",
    trials: Sequence[Mapping[str, Any]] | None = None,
    *,
    attrs: Mapping[str, Any] = ATTRS,
    direction: Any = "minimize",
    space: Mapping[str, Any] = SPACE,
) -> None:
    """A study with these finished trials in the database at `url`, which is made."""
    given = digits_trials() if trials is None else trials
    worker = new_worker()
    with Store.open(url, create=True) as store:
        study = store.create_study(name, direction, attrs)
        new = [(trial["params"], {k: space[k] for k in trial["params"]}) for trial in given]
        made = store.create_trials(study, new, total=len(given), worker=worker)
        store.finish_trials(
            [
                Finished(claimed, t["state"], t["value"], t["intermediate"], user_attrs=t["attrs"])
                for claimed, t in zip(made, given, strict=True)
            ],
            worker,
        )
