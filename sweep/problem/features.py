"""From columns to what a model is trained on: imputed, scaled, one-hot encoded, fold by fold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor

from sweep.problem.columns import (
    BLOCK,
    Columns,
    Rows,
    channel_of,
    look_at,
    numbers_of,
    store,
    store_columns,
    take_rows,
    texts_of,
)
from sweep.problem.folds import Fold
from sweep.problem.layout import Layout
from sweep.problem.scaling import Scaling, is_large, unscaled_array, unscaled_columns


class Features(NamedTuple):
    """`x` (V, N, ...): V versions of all rows, one a fold, or one for all folds; with `scaling`
    one version, not yet scaled.

    `names` (of flat features, after one-hot encoding) and, of each, the column it came from.
    """

    x: Float[Tensor, "V N *shape"]
    names: tuple[str, ...]
    columns: tuple[str, ...]
    notices: tuple[str, ...]
    scaling: Scaling | None = None


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
    Images are scaled per channel, sequences per feature. Where the folds' versions are large, and
    differ in scale alone, a single one is kept, with the same numbers in the end.
    Raises DataError for no feature left, and for values that `dtype` cannot hold.
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
    if standardize == "fold" and is_large(len(fits), source.shape, dtype):
        x, scaling = unscaled_array(source, axis, fits, dtype)
        return Features(x, (), (), layout.notices, scaling)
    x = torch.empty((len(fits), *source.shape), dtype=dtype)
    for channel in range(source.shape[axis]):
        values = np.take(source, channel, axis).astype(np.float64)
        for version, rows in enumerate(fits):
            out = channel_of(x[version].numpy(), axis, channel)
            if standardize == "none":
                store(out, values, f"X, channel {channel}", dtype)
                continue
            scaler = StandardScaler().fit(values[rows].reshape(-1, 1))
            scaled = scaler.transform(values.reshape(-1, 1)).reshape(values.shape)
            if values[rows].min() == values[rows].max():
                scaled[:] = 0
            store(out, scaled, f"X, channel {channel}", dtype)
    return Features(x, (), (), layout.notices)


def _flat_features(
    layout: Layout, folds: Sequence[Fold], standardize: str, dtype: torch.dtype
) -> Features:
    x, names = layout.x, layout.feature_names
    columns = look_at(x, names)
    fitted = bool(columns.levels or columns.missing[columns.numeric].any())
    fits = _fits(folds, standardize == "fold" or (standardize == "none" and fitted))
    shape = (len(x), columns.width)
    if standardize == "fold" and not fitted and is_large(len(fits), shape, dtype):
        unscaled, scaling = unscaled_columns(x, names, columns, fits, dtype)
        return _named(unscaled, names, columns)._replace(scaling=scaling)
    out = torch.zeros((len(fits), *shape), dtype=dtype)
    size = max(1, BLOCK // len(x))
    for start in range(0, len(columns.numeric), size):
        block = columns.numeric[start : start + size]
        values = numbers_of(x, block)
        slots = [columns.slots[j] for j in block]
        for version, rows in enumerate(fits):
            done = _numeric(values, rows, columns.missing[block], standardize != "none")
            store_columns(out[version].numpy(), done, slots, [names[j] for j in block], dtype)
    for j, levels in columns.levels.items():
        texts = texts_of(x, j)[:, None]
        for version, rows in enumerate(fits):
            _one_hot(out[version].numpy(), texts, rows, levels, columns.slots[j])
    return _named(out, names, columns)


def _named(out: Tensor, names: Sequence[str], columns: Columns) -> Features:
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


def _numeric(
    values: NDArray[np.float64], rows: Rows, missing: NDArray[np.bool_], scale: bool
) -> NDArray[np.float64]:
    """Some numeric columns (N, d) for one fold."""
    train = take_rows(values, rows)
    low, high = np.fmin.reduce(train, axis=0), np.fmax.reduce(train, axis=0)
    # What is constant in training says nothing when scaled; what is all missing, never.
    dead = ~(low < high) if scale else np.isnan(low)
    if missing.any():
        # It imports a good part of scikit-learn.
        from sklearn.impute import SimpleImputer

        imputer = SimpleImputer(strategy="median", keep_empty_features=True)
        filled = values.copy(order="F")
        train = imputer.fit_transform(train[:, missing])
        filled[:, missing] = imputer.transform(values[:, missing])
        values, train = filled, take_rows(filled, rows)
    if scale:
        values = StandardScaler().fit(train).transform(values)
    elif not missing.any():
        return values
    values[:, dead] = 0
    return values


def _one_hot(
    out: NDArray[Any], texts: NDArray[Any], rows: Rows, levels: Sequence[str | None], slot: int
) -> None:
    """One category (N, 1) for one fold, into the columns of its levels."""
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    encoder.fit(texts[rows])
    seen = [slot + levels.index(level) for level in encoder.categories_[0]]
    out[:, seen] = encoder.transform(texts)
