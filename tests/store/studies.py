"""A small study for tests of what is read back: COMPLETE, PRUNED and FAIL trials in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from sweep.store.storage import Finished, Store, new_worker

SPACE = {
    "lambda": FloatDistribution(1e-6, 0.1, log=True),
    "regularizer": CategoricalDistribution(["none", "l1", "l2"]),
}
FAILURE: dict[str, Any] = {
    "kind": "divergence", "reason": "nonfinite_loss", "fold": 3, "epoch": 1, "step": 39,
    "layer": "0.weight", "loss": None, "grad_norm": 1e30, "message": "the loss is inf",
    "last_losses": [1.0, 2.0],
}  # fmt: skip


@contextmanager
def plain_optuna(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """Optuna's own storage, as its users open it, closed at the end."""
    storage = optuna.storages.RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def small_study(store: Store, name: str = "ridge", n: int = 9) -> int:
    """Trial i is COMPLETE (score i/4), PRUNED or FAIL (diverged) as i is 0, 1 or 2 modulo 3."""
    knobs = {"fixed": {"momentum": 0.9}, "varied": list(SPACE)}
    study = store.create_study(name, "minimize", {"knobs": knobs})
    worker = new_worker()
    new = [
        ({"lambda": 10.0 ** -(1 + i % 5), "regularizer": ["none", "l1", "l2"][i % 3]}, SPACE)
        for i in range(n)
    ]
    ends = []
    for i, trial in enumerate(store.create_trials(study, new, total=n, worker=worker)):
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[i % 3]
        attrs: dict[str, Any] = {"fold_scores": [0.25 * i, 0.25 * i], "score_se": 0.5}
        if state == TrialState.FAIL:
            attrs = {"failure": FAILURE}
        value = 0.25 * i if state == TrialState.COMPLETE else None
        ends.append(Finished(trial, state, value, {0: 1.0}, attrs))
    assert all(store.finish_trials(ends, worker))
    return study
