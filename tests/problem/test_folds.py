"""Folds are scikit-learn's own, and impossible ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import model_selection as ms

from sweep.errors import DataError, SpecError
from sweep.problem.data import load_data
from sweep.problem.folds import Fold, fold_fingerprint, make_folds
from sweep.spec import FoldsSpec
from tests.problem.study_files import make_spec

SPLITTERS = {
    "kfold": ms.KFold(4, shuffle=True, random_state=7),
    "stratified": ms.StratifiedKFold(4, shuffle=True, random_state=7),
    "group": ms.GroupKFold(4, shuffle=True, random_state=7),
    "time_series": ms.TimeSeriesSplit(4),
    "repeated_kfold": ms.RepeatedKFold(n_splits=4, n_repeats=3, random_state=7),
    "repeated_stratified": ms.RepeatedStratifiedKFold(n_splits=4, n_repeats=3, random_state=7),
}


@pytest.mark.parametrize("kind", SPLITTERS)
def test_folds_are_those_of_scikit_learns_splitter(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), np.repeat(["b", "a", "c"], 20)
    groups = rng.integers(0, 9, 60)
    np.savez(tmp_path / "d.npz", X=x, y=y, groups=groups)
    cross_validation: dict[str, Any] = {"kind": kind, "folds": 4, "seed": 7, "repeats": 3}
    spec = make_spec("d.npz", task="classification", cross_validation=cross_validation)
    found = make_folds(spec, load_data(spec, tmp_path))
    expected = list(SPLITTERS[kind].split(x, y, groups if kind == "group" else None))
    assert len(found) == len(expected)
    for fold, (train, test) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(fold.train, train)
        np.testing.assert_array_equal(fold.test, test)
        assert fold.train.dtype == fold.test.dtype == np.int64


def test_every_kind_of_the_study_file_has_a_case() -> None:
    annotation = str(FoldsSpec.model_fields["kind"].annotation)
    assert all(f"'{kind}'" in annotation for kind in SPLITTERS)
    assert annotation.count("'") == 2 * (len(SPLITTERS) + 1)  # and column


def test_the_studys_seed_is_the_folds_seed_unless_they_have_their_own(tmp_path: Path) -> None:
    def tests(**keys: Any) -> list[list[int]]:
        spec = make_spec("sklearn:diabetes", **keys)
        return [f.test.tolist() for f in make_folds(spec, load_data(spec, tmp_path))]

    assert tests(seed=3) == tests(seed=1, cross_validation={"seed": 3})
    assert tests(seed=3) != tests(seed=4)


def test_a_fold_column_makes_one_fold_a_value(tmp_path: Path) -> None:
    data = {"source": "t.csv", "target": "y", "fold_column": "f"}
    spec = make_spec(data, cross_validation={"kind": "column"})

    def folds(rows: list[str]) -> list[Fold]:
        (tmp_path / "t.csv").write_text("\n".join(["x,f,y", *rows]))
        return make_folds(spec, load_data(spec, tmp_path))

    found = folds([f"{i},{name},{i * i}" for i, name in enumerate("babca")])
    assert [(f.train.tolist(), f.test.tolist()) for f in found] == [
        ([0, 2, 3], [1, 4]),
        ([1, 3, 4], [0, 2]),
        ([0, 1, 2, 4], [3]),
    ]
    with pytest.raises(DataError, match="the fold column has a single value"):
        folds(["1,a,2", "2,a,4"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cross_validation": {"folds": 9}}, "9 folds need at least 9 rows, and d.npz has 8"),
        (
            {"cross_validation": {"kind": "time_series", "folds": 8}},
            "8 folds need at least 9 rows",
        ),
        (
            {"cross_validation": {"kind": "group", "folds": 3}},
            "3 folds need at least 3 groups, and d.npz has 2",
        ),
        (
            {"task": "classification", "cross_validation": {"folds": 3}},
            "class 1 has 2 rows, fewer than the 3 folds",
        ),
        ({"cross_validation": {"kind": "column"}}, "d.npz brings none"),
    ],
)
def test_impossible_folds_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    x, y = np.arange(16.0).reshape(8, 2), np.array([0, 1, 0, 0, 1, 0, 0, 0])
    np.savez(tmp_path / "d.npz", X=x, y=y, groups=np.repeat([5, 9], 4))
    spec = make_spec("d.npz", **keys)
    with pytest.raises(DataError, match=message):
        make_folds(spec, load_data(spec, tmp_path))


def test_group_folds_without_groups_are_refused(tmp_path: Path) -> None:
    spec = make_spec("sklearn:diabetes", cross_validation={"kind": "group"})
    with pytest.raises((DataError, SpecError), match=r"data\.groups"):
        make_folds(spec, load_data(spec, tmp_path))


def test_a_folds_fingerprint_is_its_rows() -> None:
    rows = np.arange(6)
    one = Fold(rows[:4], rows[4:])
    assert fold_fingerprint(one) == fold_fingerprint(Fold(rows[:4].copy(), rows[4:].copy()))
    assert fold_fingerprint(one) != fold_fingerprint(Fold(rows[:3], rows[3:]))
