"""Where rows come from: a bundled set, a file, or a callable; not yet what its columns mean."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import scipy.sparse
from numpy.typing import NDArray

from sweep.errors import DataError, SpecError
from sweep.problem.plugins import PREFIX, describe, load_object
from sweep.problem.read_arrays import read_arrays
from sweep.problem.read_csv import csv_line, read_csv

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "wine")
PARTS = ("X", "y", "groups", "weights", "folds")
FORMS = "sklearn:NAME, a .csv, .parquet, .npy or .npz path, or python:module:function"


@dataclass(frozen=True)
class Source:
    """Rows as they came.

    `x` is an array (N, ...) of numbers or a table whose columns are the features; `parts` holds
    what came beside it (`y`, `groups`, `weights`, `folds`). `row(i)` says where row i stands.
    """

    name: str
    x: NDArray[Any] | pa.Table
    parts: Mapping[str, pa.Array]
    feature_names: tuple[str, ...]
    row: Callable[[int], str] = field(default=lambda i: f"row {i} (counted from 0)")
    image_shape: tuple[int, int] | None = None

    @property
    def n_samples(self) -> int:
        return int(self.x.num_rows if isinstance(self.x, pa.Table) else len(self.x))


def read_source(source: str, directory: Path) -> Source:
    """The rows of `data.source`; raises SpecError or DataError."""
    if source.startswith("sklearn:"):
        return _bundled(source)
    if source.startswith(PREFIX):
        return _call(source, directory)
    path = directory / source
    readers = {
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".npy": _read_arrays,
        ".npz": _read_arrays,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SpecError(f"data.source: {source!r} is no source. Allowed: {FORMS}.")
    if not path.is_file():
        there = sorted(p.name for end in readers for p in path.parent.glob(f"*{end}"))
        raise SpecError(f"data.source: no file {path}.{nearest(path.name, there, 'Files there')}")
    try:
        return reader(source, path)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or describe(error)}.") from None


def nearest(word: str, known: Sequence[str], title: str) -> str:
    """` Did you mean 'age'? Columns: age, sex, ...`: the end of a refusal."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"{hint} {title}: {', '.join(known[:12])}{more}." if known else hint


def _bundled(source: str) -> Source:
    name = source.removeprefix("sklearn:")
    if name == "linnerud":
        raise SpecError(
            "data.source: sklearn:linnerud has three targets, and a study learns one. "
            f"Sets with one: {', '.join(BUNDLED)}."
        )
    if name not in BUNDLED:
        raise SpecError(
            f"data.source: scikit-learn bundles no set {name!r}.{nearest(name, BUNDLED, 'Sets')}"
        )
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    names = tuple(str(feature) for feature in bunch.feature_names)
    shape = (8, 8) if name == "digits" else None
    return Source(source, bunch.data, {"y": pa.array(bunch.target)}, names, image_shape=shape)


def _read_csv(source: str, path: Path) -> Source:
    table = read_csv(source, path)
    names = tuple(table.column_names)
    return Source(source, table, {}, names, lambda i: csv_line(path, i))


def _read_parquet(source: str, path: Path) -> Source:
    try:
        table = pyarrow.parquet.read_table(path, partitioning=None)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{source}: not readable as Parquet: {describe(error)}.") from None
    # An index that pandas stored is no column of the user's.
    kept = [name for name in table.column_names if not name.startswith("__index_level_")]
    return Source(source, table.select(kept), {}, tuple(kept))


def _read_arrays(source: str, path: Path) -> Source:
    return _from_parts(source, read_arrays(source, path))


def _call(source: str, directory: Path) -> Source:
    function = load_object(source, directory)
    if not callable(function):
        raise SpecError(f"data.source: {source} is no function but {type(function).__name__}.")
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise DataError(f"{source} raised {describe(error)}.") from error
    if isinstance(result, Mapping):
        return _from_parts(source, result)
    if isinstance(result, tuple) and 2 <= len(result) <= 4:
        return _from_parts(source, dict(zip(PARTS, result, strict=False)))
    raise DataError(
        f"{source} returned {type(result).__name__}. Return X, y (or X, y, groups, weights), "
        "or a mapping of X, y and optionally groups, weights and folds."
    )


def _from_parts(source: str, given: Mapping[str, Any]) -> Source:
    if "X" not in given:
        held = ", ".join(map(str, given)) or "nothing"
        raise DataError(f"{source} holds no 'X'. It holds: {held}.")
    parts = {
        key: to_arrow(f"{source}: {key}", value)
        for key, value in given.items()
        if value is not None
        and (key in PARTS[1:] or (key != "X" and getattr(value, "ndim", 0) == 1))
    }
    x = given["X"]
    if isinstance(x, pd.DataFrame):
        table = _from_pandas(source, x)
        made = Source(source, table, parts, tuple(table.column_names))
    else:
        x = _numbers(source, x)
        width = x.shape[1] if x.ndim == 2 else 0
        made = Source(source, x, parts, tuple(f"x{j}" for j in range(width)))
    for key, part in parts.items():
        if len(part) != made.n_samples:
            raise DataError(f"{source}: X has {made.n_samples} rows, but {key} has {len(part)}.")
    return made


def to_arrow(what: str, values: Any) -> pa.Array:
    """One column (N,) of numbers, booleans or text, with nulls for what is missing."""
    if not isinstance(values, pd.Series):
        try:
            values = np.asarray(values)
        except Exception as error:
            raise DataError(f"{what} is not one column: {describe(error)}.") from None
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise DataError(f"{what} has shape {values.shape}, but it must be one column.")
        if values.dtype.kind not in "biufUOSM":
            raise DataError(f"{what} holds {values.dtype}, which is neither numbers nor text.")
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"{what} mixes kinds of values (numbers, text, objects): {describe(error)}."
        ) from None


def _from_pandas(source: str, frame: pd.DataFrame) -> pa.Table:
    names = [str(name) for name in frame.columns]
    columns = [to_arrow(f"{source}: column {n!r}", frame.iloc[:, j]) for j, n in enumerate(names)]
    return pa.table(
        [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns], names=names
    )


def _numbers(source: str, x: Any) -> NDArray[Any]:
    if scipy.sparse.issparse(x):
        raise DataError(f"{source}: X is sparse; give it as a dense array (X.toarray()).")
    try:
        array = np.asarray(x)
    except Exception as error:
        raise DataError(f"{source}: X is no array of numbers: {describe(error)}.") from None
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{source}: X holds {array.dtype}, but it must be real numbers "
            "(for text and dates, give a table)."
        )
    if array.ndim < 2:
        raise DataError(
            f"{source}: X has shape {array.shape}; its first axis is the rows, and at least one "
            "axis of features follows (X.reshape(-1, 1) for a single feature)."
        )
    return array
