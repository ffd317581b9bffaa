"""The rows of a study: features, target, groups, weights, predefined folds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from sweep.errors import DataError, SpecError
from sweep.problem.plugins import PREFIX
from sweep.problem.roles import codes_of, target_of, weights_of
from sweep.problem.sources import Source, nearest, read_source
from sweep.problem.tables import feature_columns, refuse_duplicates
from sweep.spec import DataSpec, StudySpec

BLOCK = 1 << 22
"""Values looked at in one go: a large array is never copied whole."""


@dataclass(frozen=True)
class Dataset:
    """What a study learns from, before anything is fitted.

    `x`: a table (DataFrame: numbers with NaN, or categories as text with None, where missing) or
    an array (N, ...) of numbers. `y` (N,): float64, or with `classes` the int64 code of each
    row's label in sorted order (as scikit-learn's LabelEncoder). `groups` and `fold_ids` (N,):
    int64 codes, in sorted order; `weights` (N,): float64. `feature_names`: of the columns of a
    flat `x`. `fingerprint`: SHA-256 of all of it.
    """

    x: NDArray[Any] | pd.DataFrame
    y: NDArray[Any]
    classes: tuple[Any, ...] | None
    groups: NDArray[np.int64] | None
    weights: NDArray[np.float64] | None
    fold_ids: NDArray[np.int64] | None
    feature_names: tuple[str, ...]
    notices: tuple[str, ...]
    fingerprint: str
    source: str
    image_shape: tuple[int, int] | None = None

    @property
    def n_samples(self) -> int:
        return len(self.y)


def load_data(spec: StudySpec, directory: Path) -> Dataset:
    """The rows that `spec.data` names, paths being relative to `directory`.

    Raises SpecError for what does not exist (source, column), DataError for what cannot be
    learned from (empty, infinite, a missing target), with the column and the first such row.
    """
    source = read_source(spec.data.source, directory)
    if isinstance(source.x, pa.Table):
        refuse_duplicates(source.name, source.x.column_names)
    if source.n_samples == 0:
        raise DataError(f"{source.name}: no rows to learn from.")
    taken = _roles(source, spec)
    kept = _features(source, spec.data, taken)
    y, classes = target_of(source, spec.task, *taken["target"])
    groups = codes_of(source, *taken["groups"]) if "groups" in taken else None
    weights = weights_of(source, *taken["weights"]) if "weights" in taken else None
    fold_ids = codes_of(source, *taken["fold_column"]) if "fold_column" in taken else None
    del taken
    x, names, notices = _take_features(source, kept)
    _refuse_infinite(source, x, names)
    shape = source.image_shape if len(kept) == len(source.feature_names) else None
    parts = (y, groups, weights, fold_ids)
    fingerprint = _fingerprint(x, parts, names, classes)
    return Dataset(
        x, y, classes, groups, weights, fold_ids, names, tuple(notices), fingerprint,
        source.name, shape,
    )  # fmt: skip


Role = tuple[str, Any]


def _roles(source: Source, spec: StudySpec) -> dict[str, Role]:
    """The name and values of the target and the other columns that are no features."""
    data = spec.data
    wanted = {
        "target": (data.target, "y"),
        "groups": (data.groups, "groups"),
        "weights": (data.weights, "weights"),
        "fold_column": (data.fold_column, "folds"),
    }
    taken: dict[str, Role] = {}
    for key, (given, default) in wanted.items():
        if given is not None:
            taken[key] = given, _column(source, f"data.{key}", given)
        elif default in source.parts:
            taken[key] = default, source.parts[default]
    if "target" not in taken:
        if source.name.startswith(PREFIX):
            raise SpecError(f"{source.name} returned no 'y', the values to predict.")
        if not source.parts:
            last = source.feature_names[-1] if source.feature_names else "x0"
            raise SpecError(
                f"{source.name} holds one array: name its column to predict in data.target, as "
                f"{last}; or keep X and y in one .npz file."
            )
        raise SpecError(
            f"{source.name} holds no 'y': name the array to predict in data.target."
            f"{nearest('y', list(source.parts), 'Arrays')}"
        )
    return taken


def _column(source: Source, key: str, name: str) -> Any:
    if name in source.parts:
        return source.parts[name]
    if name not in source.feature_names:
        known = [*source.feature_names, *source.parts]
        raise SpecError(
            f"{key}: no column {name!r} in {source.name}.{nearest(name, known, 'Columns')}"
        )
    if isinstance(source.x, pa.Table):
        return source.x.column(name)
    return pa.array(np.ascontiguousarray(source.x[:, source.feature_names.index(name)]))


def _features(source: Source, data: DataSpec, taken: dict[str, Role]) -> list[str]:
    """The names of the features: whitelisted, not dropped, and in no other role."""
    names = source.feature_names
    for key, listed in (("features", data.features or []), ("drop", data.drop)):
        if listed and not names:
            raise SpecError(f"data.{key}: the features of {source.name} have no names.")
        for i, name in enumerate(listed):
            if name not in names:
                raise SpecError(
                    f"data.{key}[{i}]: no column {name!r} in {source.name}."
                    f"{nearest(name, names, 'Columns')}"
                )
            if name in listed[:i]:
                raise SpecError(f"data.{key}[{i}]: {name!r} is listed twice.")
    roles = {name: key for key, (name, _) in taken.items() if name in names}
    for i, name in enumerate(data.features or []):
        if name in roles:
            raise SpecError(
                f"data.features[{i}]: {name!r} is data.{roles[name]}, which is never a feature."
            )
    wanted = names if data.features is None else data.features
    kept = [name for name in wanted if name not in roles and name not in data.drop]
    if names and not kept:
        raise SpecError(f"{source.name}: no column is left to be a feature.")
    return kept


def _take_features(
    source: Source, kept: Sequence[str]
) -> tuple[NDArray[Any] | pd.DataFrame, tuple[str, ...], list[str]]:
    if isinstance(source.x, pa.Table):
        frame, notices = feature_columns(source.name, source.x.select(kept))
        return frame, tuple(frame.columns), notices
    x = source.x
    if 0 in x.shape:
        raise DataError(f"{source.name}: X has shape {x.shape}, so there is nothing to learn from.")
    if list(kept) != list(source.feature_names):
        x = x[:, [source.feature_names.index(name) for name in kept]]
    return x, tuple(kept), []


def _blocks(x: NDArray[Any] | pd.DataFrame) -> Iterator[tuple[int | str, NDArray[Any]]]:
    """The rows or columns of the features a few at a time, each with its first row or its name."""
    if isinstance(x, pd.DataFrame):
        for name in x.columns:
            yield str(name), x[name].to_numpy()
        return
    rows = max(1, BLOCK // max(1, x[0].size))
    for start in range(0, len(x), rows):
        yield start, x[start : start + rows]


def _refuse_infinite(source: Source, x: NDArray[Any] | pd.DataFrame, names: Sequence[str]) -> None:
    for at, block in _blocks(x):
        if block.dtype.kind != "f":
            continue
        infinite = np.isinf(block)
        if not infinite.any():
            continue
        first = [int(i) for i in np.argwhere(infinite)[0]]
        row, column = (first[0], at) if isinstance(at, str) else (at + first[0], None)
        if column is None and len(first) == 2:
            column = names[first[1]]
        place = f"column {column!r}" if column is not None else f"X at {tuple(first[1:])}"
        raise DataError(f"{source.name}: {place} is infinite in {source.row(row)}.")


def _fingerprint(
    x: NDArray[Any] | pd.DataFrame,
    parts: Sequence[NDArray[Any] | None],
    names: Sequence[str],
    classes: tuple[Any, ...] | None,
) -> str:
    """SHA-256 of shapes, names, labels and every value, little-endian."""
    digest = hashlib.sha256(repr((x.shape, tuple(names), classes)).encode())
    for _, block in _blocks(x):
        _update(digest, block)
    for part in parts:
        digest.update(b"-" if part is None else b"+")
        if part is not None:
            _update(digest, part)
    return digest.hexdigest()


def _update(digest: Any, block: NDArray[Any]) -> None:
    if block.dtype == object:
        digest.update("\x1f".join("\x00" if v is None else v for v in block).encode())
    else:
        little = block.astype(block.dtype.newbyteorder("<"), copy=False)
        digest.update(little.dtype.str.encode())
        digest.update(np.ascontiguousarray(little).data)
