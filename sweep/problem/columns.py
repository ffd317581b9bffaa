"""The columns of flat features: what kind each is, its numbers in, its numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sweep.errors import DataError

BLOCK = 1 << 22
"""Numbers transformed in one go: what is fitted is fitted column by column, so that a large
table needs no second copy."""

Rows = NDArray[np.int64] | slice


class Columns(NamedTuple):
    """The features kept, in the source's order; `slots` is where each one's output begins."""

    numeric: list[int]
    missing: NDArray[np.bool_]
    levels: dict[int, list[str | None]]
    slots: dict[int, int]
    width: int
    notices: tuple[str, ...]


def look_at(x: NDArray[Any] | pd.DataFrame, names: Sequence[str]) -> Columns:
    """Kinds, levels and gaps of the columns, those without any difference left out."""
    numeric: list[int] = []
    levels: dict[int, list[str | None]] = {}
    slots: dict[int, int] = {}
    missing = np.zeros(len(names), dtype=bool)
    left_out: dict[str, list[str]] = {"it is missing in every row": [], "it is constant": []}
    width, size = 0, max(1, BLOCK // len(x))
    for start in range(0, len(names), size):
        block = [j for j in range(start, min(start + size, len(names))) if not _is_text(x, j)]
        values = numbers_of(x, block)
        low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
        missing[block] = np.isnan(values).any(axis=0)
        ends = dict(zip(block, zip(low, high, strict=True), strict=True))
        for j in range(start, min(start + size, len(names))):
            if j not in ends:
                found = pd.unique(texts_of(x, j))
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
    return Columns(numeric, missing, levels, slots, width, notices)


def _left_out(names: Sequence[str], why: str) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    each = why if len(names) == 1 else f"each {why.removeprefix('it ')}"
    return f"{', '.join(names[:6])}{more}: left out, for {each}."


def _is_text(x: NDArray[Any] | pd.DataFrame, j: int) -> bool:
    return isinstance(x, pd.DataFrame) and x.dtypes.iloc[j].kind == "O"


def texts_of(x: NDArray[Any] | pd.DataFrame, j: int) -> NDArray[Any]:
    assert isinstance(x, pd.DataFrame)
    return np.asarray(x.iloc[:, j].to_numpy(dtype=object))


def numbers_of(x: NDArray[Any] | pd.DataFrame, block: Sequence[int]) -> NDArray[np.float64]:
    """Some columns (N, d), each contiguous: all that follows goes down columns."""
    values = np.empty((len(x), len(block)), order="F")
    for i, j in enumerate(block):
        values[:, i] = x.iloc[:, j].to_numpy() if isinstance(x, pd.DataFrame) else x[:, j]
    return values


def take_rows(values: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
    return values[rows] if isinstance(rows, slice) else np.take(values.T, rows, axis=1).T


def channel_of(out: NDArray[Any], axis: int, channel: int) -> NDArray[Any]:
    """The part of `out` that holds one channel, as a view."""
    return out[(slice(None),) * axis + (channel,)]


def store(out: NDArray[Any], values: NDArray[np.float64], what: str, dtype: torch.dtype) -> None:
    with np.errstate(over="ignore"):
        out[...] = values
    if not np.isfinite(out).all():
        raise DataError(
            f"{what}: values up to {np.nanmax(np.abs(values)):g} are too large for {dtype}; "
            "rescale them, or set train.dtype: float64."
        )


def store_columns(
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
            store(out[:, slot], values[:, column], f"column {names[column]!r}", dtype)
