"""What the columns of a table mean: numbers, categories, dates, and what is no feature at all.

These decisions look at all rows, but never at the target; what is fitted (medians, means,
categories) is fitted by `features` on each fold's training rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sweep.errors import DataError

MAX_LEVELS = 1000
"""More different texts than this are refused: one column would become as many features."""

# Day first where dots or dashes stand, month first with slashes: pandas' own reading.
DATE_FORMATS = {
    "%Y-%m-%d": "year-month-day",
    "%Y/%m/%d": "year/month/day",
    "%d.%m.%Y": "day.month.year",
    "%m/%d/%Y": "month/day/year",
    "%d/%m/%Y": "day/month/year",
    "%d-%m-%Y": "day-month-year",
    "%d %b %Y": "day month year",
    "%d %B %Y": "day month year",
    "%b %d, %Y": "month day, year",
    "%B %d, %Y": "month day, year",
}
TIME_FORMATS = ("", " %H:%M", " %H:%M:%S", "T%H:%M", "T%H:%M:%S")
DAY = 86_400.0


def feature_columns(where: str, table: pa.Table) -> tuple[pd.DataFrame, list[str]]:
    """The feature columns of a table as numbers (float32 or float64, NaN where missing) or
    categories (object: text, None where missing), and notices on what was turned or left out.

    Dates become days since 1970-01-01; text whose every value differs is left out. The table is
    taken apart on the way, so that no more than one column is held twice.
    """
    notices: list[str] = []
    columns: dict[str, pd.Series] = {}
    names = table.column_names
    parts = {name: table.column(j) for j, name in enumerate(names)}
    del table
    for j, name in enumerate(names):
        column = plain(parts.pop(name))
        if name.strip():
            kept = _typed(where, name, column, notices)
        else:
            notices.append(_index(where, j, column))
            continue
        if kept is not None:
            columns[name] = pd.Series(kept, dtype=kept.dtype, copy=False)
    return pd.DataFrame(columns, copy=False), notices


def refuse_duplicates(where: str, names: list[str]) -> None:
    """Raises DataError where two columns have one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{where}: two columns are called {name!r}; rename one.")
        seen.add(name)


def plain(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without dictionary encoding; encoded numbers become text, being categories."""
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type).cast(pa.string())
    return column


def is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def to_numbers(column: pa.ChunkedArray) -> NDArray[Any] | None:
    """A column of numbers, booleans or nulls as float32 (where exact) or float64, else None."""
    kind, types = column.type, pa.types
    if types.is_null(kind):
        return np.full(len(column), np.nan, dtype=np.float32)
    if types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if not (types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)):
        return None
    narrow = types.is_boolean(kind) or kind.bit_width <= (32 if types.is_floating(kind) else 16)
    target = pa.float32() if narrow else pa.float64()
    if types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif kind == pa.float16():
        return np.asarray(column.to_numpy(), dtype=np.float32)
    return np.asarray(column.cast(target, safe=False).to_numpy())


def to_days(column: pa.ChunkedArray) -> NDArray[np.float64] | None:
    """Dates as days since 1970-01-01, times of day and durations as parts of days, else None."""
    kind, types = column.type, pa.types
    if types.is_date(kind) or types.is_timestamp(kind):
        micros = column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False)
    elif types.is_time(kind):
        micros = column.cast(pa.time64("us"), safe=False)
    elif types.is_duration(kind):
        micros = column.cast(pa.duration("us"), safe=False)
    else:
        return None
    numbers = to_numbers(micros.cast(pa.int64()))
    assert numbers is not None
    return np.asarray(numbers / (DAY * 1e6), dtype=np.float64)


def _typed(where: str, name: str, column: Any, notices: list[str]) -> NDArray[Any] | None:
    numbers = to_numbers(column)
    if numbers is not None:
        return numbers
    days = to_days(column)
    if days is not None:
        notices.append(f"{name}: dates were turned into days since 1970-01-01.")
        return days
    if not is_text(column.type):
        raise DataError(
            f"{where}: column {name!r} holds {column.type}, which is neither numbers nor text; "
            "leave it out with data.drop."
        )
    levels = pc.unique(column.drop_null())
    n_present, n_levels = len(column) - column.null_count, len(levels)
    found = _parse_dates(levels) if n_levels else None
    if found is not None:
        days_of_level, reading = found
        codes = pc.index_in(column, value_set=levels).to_numpy()
        days = np.full(len(column), np.nan)
        present = ~np.isnan(codes)
        days[present] = days_of_level[codes[present].astype(np.int64)]
        notices.append(f"{name}: dates ({reading}) were turned into days since 1970-01-01.")
        return days
    if n_levels > 2 and n_levels == n_present:
        notices.append(f"{name}: left out, for it is text whose every value differs.")
        return None
    if n_levels > MAX_LEVELS:
        raise DataError(
            f"{where}: column {name!r} has {n_levels:,} different texts, too many to one-hot "
            "encode; leave it out with data.drop or group its values."
        )
    return np.array(column.to_pylist(), dtype=object)


def _parse_dates(levels: Any) -> tuple[NDArray[np.float64], str] | None:
    """The days of each text and how they were read, if one format reads them all."""
    texts = pd.Series(levels.to_pylist(), dtype=object)
    for day, reading in DATE_FORMATS.items():
        for time in TIME_FORMATS:
            # A glance at a few texts turns nearly every other column away.
            few = pd.to_datetime(texts[:20], format=day + time, errors="coerce")
            if few.isna().any():
                continue
            dates = pd.to_datetime(texts, format=day + time, errors="coerce")
            if not dates.isna().any():
                epoch = (dates - pd.Timestamp(0)) / pd.Timedelta(days=1)
                return epoch.to_numpy(dtype=np.float64), reading
    return None


def _index(where: str, j: int, column: Any) -> str:
    """Why a column without a header is left out: it must be the row numbers that pandas writes."""
    numbers = to_numbers(column)
    counts = numbers is not None and np.array_equal(numbers - numbers[0], np.arange(len(numbers)))
    if not counts:
        raise DataError(f"{where}: column {j + 1} has no name in the header; give it one.")
    return f"column {j + 1}: left out, for it has no name and counts the rows."
