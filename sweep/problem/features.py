"""From columns to what a model is trained on: imputed, scaled, one-hot encoded, fold by fold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor

from sweep.errors import DataError
from sweep.problem.folds import Fold
from sweep.problem.layout import Layout

BLOCK = 1 << 22
"""Numbers transformed in one go: what is fitted is fitted column by column, so that a large
table needs no second copy."""

Rows = NDArray[np.int64] | slice


class Features(NamedTuple):
    """`x` (V, N, ...): V versions of all rows, one a fold, or one for all folds.

    `names` (of flat features, after one-hot encoding) and, of each, the column it came from.
    """

    x: Float[Tensor, "V N *shape"]
    names: tuple[str, ...]
    columns: tuple[str, ...]
    notices: tuple[str, ...]


def make_features(
    layout: Layout, folds: Sequence[Fold], standardize: str, dtype: torch.dtype
) -> Features:
    """Fits the transformers on each fold's training rows and applies them to all rows.

    Numbers: the missing ones become the median (SimpleImputer), then (x - mean) / std with
    ddof 0 (StandardScaler). Categories: one column a level of the whole data (OneHotEncoder),
    a missing value being a level of its own; these are not scaled.
    `standardize`: `fold` as said; `none` leaves the scaler out; `all` fits everything on all rows.

    A numeric column that is constant (if scaled) or all missing within the training rows, and a
    level that is not among them, is 0 in all rows of that fold: its weights could not be learned.
    Images are scaled per channel, sequences per feature. Raises DataError for no feature left,
    and for values that `dtype` cannot hold.
    """
    if layout.channel_axis is not None:
        return _array_features(layout, folds, standardize, dtype)
    return _flat_features(layout, folds, standardize, dtype)


def _fits(folds: Sequence[Fold], per_fold: bool) -> list[Rows]:
    return [fold.train for fold in folds] if per_fold else [slice(None)]


def _array_features(
    layout: Layout, folds: Sequence[Fold], standardize: str, dtype: torch.dtype
) -> Features:
    source, axis = np.asarray(layout.x), layout.channel_axis
    assert axis is not None
    fits = _fits(folds, standardize == "fold")
    x = torch.empty((len(fits), *source.shape), dtype=dtype)
    for channel in range(source.shape[axis]):
        values = np.take(source, channel, axis).astype(np.float64)
        for version, rows in enumerate(fits):
            out = _channel(x[version].numpy(), axis, channel)
            if standardize == "none":
                _store(out, values, f"X, channel {channel}", dtype)
                continue
            scaler = StandardScaler().fit(values[rows].reshape(-1, 1))
            scaled = scaler.transform(values.reshape(-1, 1)).reshape(values.shape)
            if values[rows].min() == values[rows].max():
                scaled[:] = 0
            _store(out, scaled, f"X, channel {channel}", dtype)
    return Features(x, (), (), layout.notices)


def _channel(out: NDArray[Any], axis: int, channel: int) -> NDArray[Any]:
    """The part of `out` that holds one channel, as a view."""
    return out[(slice(None),) * axis + (channel,)]


def _store(out: NDArray[Any], values: NDArray[np.float64], what: str, dtype: torch.dtype) -> None:
    with np.errstate(over="ignore"):
        out[...] = values
    if not np.isfinite(out).all():
        raise DataError(
            f"{what}: values up to {np.nanmax(np.abs(values)):g} are too large for {dtype}; "
            "rescale them, or set train.dtype: float64."
        )


class _Columns(NamedTuple):
    """The features kept, in the source's order; `slots` is where each one's output begins."""

    numeric: list[int]
    missing: NDArray[np.bool_]
    levels: dict[int, list[str | None]]
    slots: dict[int, int]
    width: int
    notices: tuple[str, ...]


def _flat_features(
    layout: Layout, folds: Sequence[Fold], standardize: str, dtype: torch.dtype
) -> Features:
    x, names = layout.x, layout.feature_names
    columns = _look(x, names)
    fitted = bool(columns.levels or columns.missing[columns.numeric].any())
    fits = _fits(folds, standardize == "fold" or (standardize == "none" and fitted))
    out = torch.zeros((len(fits), len(x), columns.width), dtype=dtype)
    size = max(1, BLOCK // len(x))
    for start in range(0, len(columns.numeric), size):
        block = columns.numeric[start : start + size]
        values = _numbers(x, block)
        slots = [columns.slots[j] for j in block]
        for version, rows in enumerate(fits):
            done = _numeric(values, rows, columns.missing[block], standardize != "none")
            _store_columns(out[version].numpy(), done, slots, [names[j] for j in block], dtype)
    for j, levels in columns.levels.items():
        texts = _texts(x, j)[:, None]
        for version, rows in enumerate(fits):
            _one_hot(out[version].numpy(), texts, rows, levels, columns.slots[j])
    return _named(out, names, columns)


def _named(out: Tensor, names: Sequence[str], columns: _Columns) -> Features:
    after: list[str] = []
    origin: list[str] = []
    for j in columns.slots:
        levels = columns.levels.get(j)
        made = (
            [names[j]]
            if levels is None
            else [f"{names[j]}={'(missing)' if level is None else level}" for level in levels]
        )
        after += made
        origin += [names[j]] * len(made)
    return Features(out, tuple(after), tuple(origin), columns.notices)


def _look(x: NDArray[Any] | pd.DataFrame, names: Sequence[str]) -> _Columns:
    """Kinds, levels and gaps of the columns, those without any difference left out."""
    numeric: list[int] = []
    levels: dict[int, list[str | None]] = {}
    slots: dict[int, int] = {}
    missing = np.zeros(len(names), dtype=bool)
    left_out: dict[str, list[str]] = {"it is missing in every row": [], "it is constant": []}
    width, size = 0, max(1, BLOCK // len(x))
    for start in range(0, len(names), size):
        block = [j for j in range(start, min(start + size, len(names))) if not _is_text(x, j)]
        values = _numbers(x, block)
        low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
        missing[block] = np.isnan(values).any(axis=0)
        ends = dict(zip(block, zip(low, high, strict=True), strict=True))
        for j in range(start, min(start + size, len(names))):
            if j not in ends:
                found = pd.unique(_texts(x, j))
                texts: list[str | None] = sorted(t for t in found if t is not None)
                texts += [None] if len(texts) < len(found) else []
                why = "it is missing in every row" if texts == [None] else "it is constant"
                if len(texts) < 2:
                    left_out[why].append(names[j])
                    continue
                levels[j] = texts
            elif not ends[j][0] < ends[j][1]:
                why = "it is missing in every row" if np.isnan(ends[j][0]) else "it is constant"
                left_out[why].append(names[j])
                continue
            else:
                numeric.append(j)
            slots[j] = width
            width += len(levels.get(j, [""]))
    if not width:
        raise DataError("No feature is left: every column is constant or missing in every row.")
    notices = tuple(_left_out(which, why) for why, which in left_out.items() if which)
    return _Columns(numeric, missing, levels, slots, width, notices)


def _left_out(names: Sequence[str], why: str) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    each = why if len(names) == 1 else f"each {why.removeprefix('it ')}"
    return f"{', '.join(names[:6])}{more}: left out, for {each}."


def _is_text(x: NDArray[Any] | pd.DataFrame, j: int) -> bool:
    return isinstance(x, pd.DataFrame) and x.dtypes.iloc[j].kind == "O"


def _texts(x: NDArray[Any] | pd.DataFrame, j: int) -> NDArray[Any]:
    assert isinstance(x, pd.DataFrame)
    return np.asarray(x.iloc[:, j].to_numpy(dtype=object))


def _numbers(x: NDArray[Any] | pd.DataFrame, block: Sequence[int]) -> NDArray[np.float64]:
    """Some columns (N, d), each contiguous: all that follows goes down columns."""
    values = np.empty((len(x), len(block)), order="F")
    for i, j in enumerate(block):
        values[:, i] = x.iloc[:, j].to_numpy() if isinstance(x, pd.DataFrame) else x[:, j]
    return values


def _take(values: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
    return values[rows] if isinstance(rows, slice) else np.take(values.T, rows, axis=1).T


def _numeric(
    values: NDArray[np.float64], rows: Rows, missing: NDArray[np.bool_], scale: bool
) -> NDArray[np.float64]:
    """Some numeric columns (N, d) for one fold."""
    train = _take(values, rows)
    low, high = np.fmin.reduce(train, axis=0), np.fmax.reduce(train, axis=0)
    # What is constant in training says nothing when scaled; what is all missing, never.
    dead = ~(low < high) if scale else np.isnan(low)
    if missing.any():
        imputer = SimpleImputer(strategy="median", keep_empty_features=True)
        filled = values.copy(order="F")
        train = imputer.fit_transform(train[:, missing])
        filled[:, missing] = imputer.transform(values[:, missing])
        values, train = filled, _take(filled, rows)
    if scale:
        values = StandardScaler().fit(train).transform(values)
    elif not missing.any():
        return values
    values[:, dead] = 0
    return values


def _store_columns(
    out: NDArray[Any],
    values: NDArray[np.float64],
    slots: Sequence[int],
    names: Sequence[str],
    dtype: torch.dtype,
) -> None:
    with np.errstate(over="ignore"):
        out[:, slots] = values
    for column, slot in enumerate(slots):
        if not np.isfinite(out[:, slot]).all():
            _store(out[:, slot], values[:, column], f"column {names[column]!r}", dtype)


def _one_hot(
    out: NDArray[Any], texts: NDArray[Any], rows: Rows, levels: Sequence[str | None], slot: int
) -> None:
    """One category (N, 1) for one fold, into the columns of its levels."""
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    encoder.fit(texts[rows])
    seen = [slot + levels.index(level) for level in encoder.categories_[0]]
    out[:, seen] = encoder.transform(texts)
