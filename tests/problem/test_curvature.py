"""The curvature that decides which learning rates explode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweep.problem import curvature as module
from sweep.problem.curvature import curvature
from sweep.problem.prepare import prepare
from sweep.spec import load_spec

STUDY: dict[str, Any] = {
    "study": "c",
    "data": {"source": "sklearn:diabetes", "standardize_target": "all"},
    "task": "regression",
    "model": {"kind": "linear"},
    "train": {"learning_rate": 0.1, "dtype": "float64"},
}


@pytest.mark.parametrize("standardize", ["fold", "all", "none"])
def test_it_is_the_largest_eigenvalue_of_the_training_rows(standardize: str) -> None:
    spec = load_spec({**STUDY, "data": {**STUDY["data"], "standardize": standardize}}).spec
    problem = prepare(spec, Path())
    found = curvature(problem)
    assert found is not None
    for k, fold in enumerate(problem.folds):
        x = problem.x_of(k).numpy()[fold.train]
        singular = np.linalg.svd(x, compute_uv=False)[0]
        assert found["weights"][k] == pytest.approx(singular**2 / len(x), rel=1e-9)
        with_ones = np.linalg.svd(np.c_[x, np.ones(len(x))], compute_uv=False)[0]
        assert found["with_bias"][k] == pytest.approx(with_ones**2 / len(x), rel=1e-9)


def test_a_row_of_weight_two_counts_as_two_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y, folds = rng.normal(size=(20, 3)), rng.normal(size=20), np.arange(20) % 2
    weights = 1.0 + (np.arange(20) < 6)
    twice = np.repeat(np.arange(20), weights.astype(int))
    np.savez(tmp_path / "weighted.npz", X=x, y=y, folds=folds, weights=weights)
    np.savez(tmp_path / "twice.npz", X=x[twice], y=y[twice], folds=folds[twice])
    found = []
    for name in ("weighted", "twice"):
        data = {"source": f"{name}.npz", "standardize": "none"}
        study = {**STUDY, "data": data, "cross_validation": {"kind": "column"}}
        found.append(curvature(prepare(load_spec(study).spec, tmp_path)))
    assert found[0] == {key: pytest.approx(values) for key, values in found[1].items()}


def test_what_would_take_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = prepare(load_spec(STUDY).spec, Path())
    monkeypatch.setattr(module, "MOST_OPERATIONS", 1e4)
    assert curvature(problem) is None


def test_rows_are_summed_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = prepare(load_spec(STUDY).spec, Path())
    whole = curvature(problem)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 100)
    parts = curvature(problem)
    assert whole is not None and parts is not None
    assert parts == {key: pytest.approx(values) for key, values in whole.items()}
