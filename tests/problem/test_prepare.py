"""The problem as tensors: targets, weights, versions, notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from sweep.errors import DataError
from sweep.problem.folds import fold_fingerprint
from sweep.problem.prepare import prepare
from tests.problem.study_files import make_spec, prepare_csv


def test_binary_targets_are_0_or_1_with_one_output(tmp_path: Path) -> None:
    problem = prepare(make_spec("sklearn:breast_cancer", task="classification"), tmp_path)
    assert (problem.kind, problem.n_outputs, problem.classes) == ("binary", 1, (0, 1))
    assert problem.y.dtype == torch.float64 and problem.y.shape == (1, 569)
    np.testing.assert_array_equal(problem.y_of(3).numpy(), load_breast_cancer().target)


def test_multiclass_targets_are_codes_with_one_output_a_class(tmp_path: Path) -> None:
    problem = prepare(make_spec("sklearn:wine", task="classification"), tmp_path)
    assert (problem.kind, problem.n_outputs, problem.classes) == ("multiclass", 3, (0, 1, 2))
    assert problem.y.dtype == torch.int64
    np.testing.assert_array_equal(problem.y_of(0).numpy(), load_wine().target)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_targets_are_standardised_by_each_folds_training_rows(dtype: str, tmp_path: Path) -> None:
    y = load_diabetes().target
    train = {"learning_rate": 0.1, "dtype": dtype}
    for scale, versions in (("none", 1), ("all", 1), ("fold", 5)):
        spec = make_spec({"source": "sklearn:diabetes", "standardize_target": scale}, train=train)
        problem = prepare(spec, tmp_path)
        assert problem.y.shape == (versions, 442) and problem.y.dtype == getattr(torch, dtype)
        assert problem.x.dtype == problem.y.dtype and problem.n_outputs == 1
        for k, fold in enumerate(problem.folds):
            rows = fold.train if scale == "fold" else np.arange(442)
            mean, std = (0, 1) if scale == "none" else (y[rows].mean(), y[rows].std())
            found = problem.y_of(k).double().numpy()
            np.testing.assert_allclose(found, (y - mean) / std, rtol=1e-5, atol=1e-6)


def test_a_target_of_another_scale_brings_the_advice_to_standardise_it(tmp_path: Path) -> None:
    def advised(factor: float, scale: str) -> bool:
        text = "\n".join(["a,y", *[f"{i},{factor * (-1) ** i}" for i in range(10)]])
        problem = prepare_csv(tmp_path, text, {"standardize_target": scale})
        return any("data.standardize_target: fold" in notice for notice in problem.notices)

    assert [advised(f, "none") for f in (0.05, 0.2, 5, 20)] == [True, False, False, True]
    assert not advised(20, "fold") and not advised(20, "all") and not advised(0, "none")


def test_the_largest_eigenvalue_of_standardised_diabetes_is_the_published_one(
    tmp_path: Path,
) -> None:
    """4.0242107502, which bounds the stable learning rates of full-batch gradient descent."""
    spec = make_spec({"source": "sklearn:diabetes", "standardize": "all"})
    x = prepare(spec, tmp_path).x_of(0)
    assert float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1]) == pytest.approx(4.0242107502)


def test_weights_come_along_and_no_fold_may_lack_them(tmp_path: Path) -> None:
    rows = [f"{i},{i % 3},{i // 5},{i}" for i in range(10)]
    text = "\n".join(["a,w,late,y", *rows])
    problem = prepare_csv(tmp_path, text, {"weights": "w"})
    assert problem.weights is not None
    assert problem.weights.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    keys: dict[str, Any] = {"cross_validation": {"kind": "time_series", "folds": 2}}
    with pytest.raises(DataError, match="the training rows of fold 0 all have weight 0"):
        prepare_csv(tmp_path, text, {"weights": "late"}, **keys)


def test_a_class_that_a_folds_training_rows_lack_is_noticed(tmp_path: Path) -> None:
    text = "\n".join(["a,f,y", *[f"{i},{i // 6},{'uv'[i // 6]}" for i in range(12)]])
    data = {"fold_column": "f"}
    keys: dict[str, Any] = {"task": "classification", "cross_validation": {"kind": "column"}}
    notices = prepare_csv(tmp_path, text, data, **keys).notices
    assert "Fold 0: no training row has class 'u'." in notices


def test_preparing_again_gives_the_same_problem(tmp_path: Path) -> None:
    spec = make_spec("sklearn:diabetes")
    one, two = prepare(spec, tmp_path), prepare(spec, tmp_path)
    assert torch.equal(one.x, two.x) and one.fingerprint == two.fingerprint
    assert one.fold_fingerprints == two.fold_fingerprints == tuple(map(fold_fingerprint, one.folds))
    assert len(set(one.fold_fingerprints)) == 5


FORMS: list[tuple[str, tuple[int, ...], list[int] | None, tuple[int, ...]]] = [
    ("linear", (4, 6), None, (24,)),
    ("mlp", (2, 3, 4), None, (24,)),
    ("cnn", (5, 6), None, (1, 5, 6)),
    ("cnn", (3, 5, 6), None, (3, 5, 6)),
    ("cnn", (30,), [5, 6], (1, 5, 6)),
    ("cnn", (30,), [2, 3, 5], (2, 3, 5)),
    ("rnn", (7, 2), None, (7, 2)),
    ("lstm", (7,), None, (7, 1)),
    ("gru", (14,), [7, 2], (7, 2)),
    ("python:any:net", (3, 5, 6), None, (3, 5, 6)),
    ("python:any:net", (7, 2), None, (7, 2)),
    ("python:any:net", (7,), None, (7,)),
    ("python:any:net", (14,), [7, 2], (7, 2)),
]


@pytest.mark.parametrize(("kind", "given", "shape", "expected"), FORMS, ids=str)
def test_rows_take_the_form_of_the_model(
    kind: str,
    given: tuple[int, ...],
    shape: list[int] | None,
    expected: tuple[int, ...],
    tmp_path: Path,
) -> None:
    x = np.random.default_rng(0).normal(size=(12, *given))
    np.savez(tmp_path / "d.npz", X=x, y=np.arange(12.0))
    data: dict[str, Any] = {"source": "d.npz", "standardize": "none"}
    data |= {"shape": shape} if shape else {}
    problem = prepare(make_spec(data, model={"kind": kind}), tmp_path)
    assert problem.input_shape == expected
    np.testing.assert_array_equal(problem.x[0].numpy(), x.reshape(12, *expected))
    assert len(problem.feature_names) == (expected[0] if len(expected) == 1 else 0)


def test_images_whose_channels_seem_to_come_last_are_noticed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(10, 8, 8, 3))
    np.savez(tmp_path / "d.npz", X=x, y=np.arange(10.0))
    problem = prepare(make_spec("d.npz", model={"kind": "cnn"}), tmp_path)
    assert any("if the channels come last" in notice for notice in problem.notices)
