"""Columns that are no features: the target, groups, weights, predefined folds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweep.errors import DataError
from sweep.problem.sources import Source
from sweep.problem.tables import is_text, plain, to_days, to_numbers


def target_of(
    source: Source, task: str, name: str, column: Any
) -> tuple[NDArray[Any], tuple[Any, ...] | None]:
    """The target as float64, or as int64 codes with the labels they stand for in sorted order.

    Raises DataError for a missing or infinite value, text or dates to regress on, and labels
    that are none: a single one, real numbers, or nearly as many as there are rows.
    """
    what = f"{source.name}: the target {name!r}"
    values = _values(source, what, column)
    if task == "regression":
        if values.dtype == object:
            raise DataError(f"{what} is text ({values[0]!r}); use task: classification.")
        return values.astype(np.float64), None
    return _codes_of_labels(what, values)


def codes_of(source: Source, name: str, column: Any) -> NDArray[np.int64]:
    """A number for each row's value, in the order of the sorted values."""
    values = _values(source, f"{source.name}: column {name!r}", column)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def weights_of(source: Source, name: str, column: Any) -> NDArray[np.float64]:
    """Sample weights: finite, at least 0 and not all 0."""
    what = f"{source.name}: the weight column {name!r}"
    values = _values(source, what, column)
    if values.dtype == object:
        raise DataError(f"{what} is text ({values[0]!r}); weights are numbers.")
    weights = values.astype(np.float64)
    if (weights < 0).any():
        row = int(np.argmax(weights < 0))
        raise DataError(f"{what} is negative ({weights[row]:g}) in {source.row(row)}.")
    if not weights.any():
        raise DataError(f"{what} is 0 in every row.")
    return weights


def _values(source: Source, what: str, column: Any) -> NDArray[Any]:
    """The values with nothing missing or infinite: bool, int64, float64, or text as objects."""
    column = plain(column)
    kind = column.type
    if to_days(column.slice(0, 0)) is not None:
        raise DataError(f"{what} holds dates; turn them into numbers or labels first.")
    if column.null_count:
        raise DataError(f"{what} is missing in {source.row(_first_null(column))}.")
    if is_text(kind):
        return np.array(column.to_pylist(), dtype=object)
    if pa.types.is_boolean(kind):
        return np.asarray(column.to_numpy()).astype(bool)
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return np.asarray(column.to_numpy()).astype(np.int64)
    values = to_numbers(column)
    if values is None:
        raise DataError(f"{what} holds {kind}, which is neither numbers nor text.")
    values = values.astype(np.float64)
    for bad, word in ((np.isnan(values), "missing"), (np.isinf(values), "infinite")):
        if bad.any():
            raise DataError(f"{what} is {word} in {source.row(int(np.argmax(bad)))}.")
    return values


def _first_null(column: Any) -> int:
    return int(np.argmax(np.asarray(column.is_null().to_numpy(), dtype=bool)))


def _codes_of_labels(what: str, values: NDArray[Any]) -> tuple[NDArray[Any], tuple[Any, ...]]:
    if values.dtype.kind == "f" and (fractional := values != np.floor(values)).any():
        raise DataError(
            f"{what} holds real numbers ({values[fractional][0]:g}), which are no class labels; "
            "use task: regression."
        )
    labels, codes = np.unique(values, return_inverse=True)
    n, number = len(labels), values.dtype != object
    if n == 1:
        raise DataError(f"{what} is {labels[0]!s} in every row; classification needs two classes.")
    if n > max(2, len(values) // 2) or (number and n > max(20, len(values) // 5)):
        fix = "use task: regression" if number else "name a column of labels in data.target"
        raise DataError(
            f"{what} has {n:,} different values in {len(values):,} rows, too many to be classes; "
            f"{fix}."
        )
    return codes.astype(np.int64), tuple(labels.tolist())
