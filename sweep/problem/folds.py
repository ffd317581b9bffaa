"""The folds of a study: scikit-learn's own splitters, the same for every trial."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import model_selection

from sweep.errors import DataError
from sweep.problem.data import Dataset
from sweep.spec import StudySpec


class Fold(NamedTuple):
    """Row numbers: `train` to fit on, `test` to score on."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def make_folds(spec: StudySpec, data: Dataset) -> list[Fold]:
    """The folds of `cross_validation`, shuffled (where the splitter shuffles) by `fold_seed`.

    `column`: a fold for each value of the fold column in sorted order, its rows being the test
    rows. Raises DataError where there are too few rows, groups, or rows of a class.
    """
    kind, n = spec.fold_kind, data.n_samples
    if kind == "column":
        return _predefined(data)
    folds = spec.cross_validation.folds
    needed = folds + 1 if kind == "time_series" else folds
    if needed > n:
        raise DataError(
            f"cross_validation.folds: {folds} folds need at least {needed} rows, and "
            f"{data.source} has {n}."
        )
    if "stratified" in kind:
        _refuse_rare_classes(data, folds)
    if kind == "group":
        _refuse_few_groups(data, folds)
    splitter = _splitter(spec, kind, folds)
    # The other splitters warn that they ignore groups.
    groups = data.groups if kind == "group" else None
    splits = splitter.split(np.zeros((n, 1)), data.y, groups)
    return [Fold(train.astype(np.int64), test.astype(np.int64)) for train, test in splits]


def fold_fingerprint(fold: Fold) -> str:
    """SHA-256 of the row numbers."""
    digest = hashlib.sha256()
    for rows in fold:
        digest.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
    return digest.hexdigest()


def _splitter(spec: StudySpec, kind: str, folds: int) -> Any:
    seed, repeats = spec.fold_seed, spec.cross_validation.repeats
    ms = model_selection
    match kind:
        case "kfold":
            return ms.KFold(folds, shuffle=True, random_state=seed)
        case "stratified":
            return ms.StratifiedKFold(folds, shuffle=True, random_state=seed)
        case "group":
            return ms.GroupKFold(folds, shuffle=True, random_state=seed)
        case "time_series":
            return ms.TimeSeriesSplit(folds)
        case "repeated_kfold":
            return ms.RepeatedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
        case "repeated_stratified":
            return ms.RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
    raise AssertionError(kind)


def _predefined(data: Dataset) -> list[Fold]:
    ids = data.fold_ids
    if ids is None:
        raise DataError(
            f"cross_validation.kind column needs folds, and {data.source} brings none: "
            "name their column in data.fold_column."
        )
    if ids.max() == 0:
        raise DataError(
            f"{data.source}: the fold column has a single value, so no rows are left to train on."
        )
    rows: Sequence[int] = range(int(ids.max()) + 1)
    return [Fold(np.flatnonzero(ids != k), np.flatnonzero(ids == k)) for k in rows]


def _refuse_rare_classes(data: Dataset, folds: int) -> None:
    assert data.classes is not None
    counts = np.bincount(data.y, minlength=len(data.classes))
    rare = int(np.argmin(counts))
    if counts[rare] < folds:
        rows = "1 row" if counts[rare] == 1 else f"{counts[rare]} rows"
        raise DataError(
            f"cross_validation.folds: class {data.classes[rare]!r} has {rows}, fewer than the "
            f"{folds} folds; use fewer folds, or kind kfold."
        )


def _refuse_few_groups(data: Dataset, folds: int) -> None:
    if data.groups is None:
        raise DataError(
            f"cross_validation.kind group needs groups, and {data.source} brings none: "
            "name their column in data.groups."
        )
    n_groups = int(data.groups.max()) + 1
    if n_groups < folds:
        raise DataError(
            f"cross_validation.folds: {folds} folds need at least {folds} groups, and "
            f"{data.source} has {n_groups}."
        )
