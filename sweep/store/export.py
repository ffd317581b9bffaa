"""A study as a file that other programs read: CSV, JSON, Parquet, or a database of its own."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import RequestError
from sweep.store import queries
from sweep.store.connection import connect, parsed, shown, storage_url
from sweep.store.readonly import Rows

if TYPE_CHECKING:
    from sweep.store.copying import Copied

SUFFIXES = {
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
}
VIEWS = ("trials", "folds", "failures")


def export(url: str, study: str, path: Path, *, view: str = "trials", replace: bool = False) -> int:
    """Writes `study` to `path` and returns the number of rows; the suffix says in which form.

    `.csv`, `.json` (a list of objects) and `.parquet` hold the rows of one of the `VIEWS`, the
    columns of this study only; `.sqlite` and `.db` everything, as a database that Optuna reads.
    The file appears when it is complete. Raises RequestError for another suffix, for a file that
    is there already (unless `replace`), and where it cannot be written.
    """
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise RequestError(
            f"{path} has no suffix that says how to write it. Give one of: {', '.join(SUFFIXES)}."
        )
    check_target(path, url, "trials.csv", replace=replace)
    if form == "sqlite":
        if view != "trials":
            raise RequestError("A database holds every view: leave the choice of one out.")
        return save_copy(url, study, path).trials
    found = _rows(url, study, view)
    write = {"csv": _write_csv, "json": _write_json, "parquet": _write_parquet}[form]
    with appearing(path) as part:
        write(found, part)
    return len(found)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file to write into that becomes `path` at the end, or nothing does.

    Raises RequestError where it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)


def save_copy(source: str, study: str, path: Path) -> Copied:
    """Writes `study` alone into a new SQLite file, complete in itself, views included.

    The file appears at `path` when it is finished, or not at all; one that was there is replaced.
    """
    from sweep.store.copying import copy_studies

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        (copied,) = copy_studies(source, f"sqlite:///{part}", {study: study})
        engine = connect(f"sqlite:///{part}")
        with engine.connect() as connection:
            # Without a write-ahead log the file can be read from anywhere, with nothing beside it.
            connection.connection.cursor().execute("PRAGMA journal_mode = DELETE")
        engine.dispose()
        os.replace(part, path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        for left in part.parent.glob(f"{part.name}*"):
            left.unlink()
    return copied


def _rows(url: str, study: str, view: str) -> Rows:
    if view == "folds":
        return queries.folds(url, study)
    return queries.failures(url, study) if view == "failures" else queries.trials(url, study)


def check_target(path: Path, url: str, example: str, *, replace: bool) -> None:
    """Raises RequestError for a file that is not to be written, and names `example` for a folder.

    One that is there already (unless `replace`), and the study database itself in any case.
    """
    source = parsed(storage_url(url))
    if path.is_dir():
        raise RequestError(f"{path} is a folder. Give a file in it: {path / example}")
    if not path.parent.is_dir():
        raise RequestError(f"The folder {path.parent} does not exist.")
    if not path.exists():
        return
    database = Path(source.database or "")
    if source.get_backend_name() == "sqlite" and database.exists() and path.samefile(database):
        raise RequestError(f"{path} is the database itself, {shown(source)}. Give another file.")
    if not replace:
        raise RequestError(f"{path} is there already. Give another file, or add --replace.")
    if path.with_name(f"{path.name}-wal").exists():
        # The new file would be read together with what is left of the old one.
        raise RequestError(f"{path} is a database that is in use. Give another file.")


def _write_csv(found: Rows, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(found.columns)
        writer.writerows([["" if cell is None else cell for cell in row] for row in found.rows])


def _write_json(found: Rows, path: Path) -> None:
    # JSON has no infinities; the score of such a trial is null, as everywhere.
    plain = [
        {name: _finite(value) for name, value in zip(found.columns, row, strict=True)}
        for row in found.rows
    ]
    with path.open("w", encoding="utf-8") as file:
        json.dump(plain, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_parquet(found: Rows, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns = list(zip(*found.rows, strict=True)) or [()] * len(found.columns)
    arrays = {
        name: _typed(pa, name, values) for name, values in zip(found.columns, columns, strict=True)
    }
    pyarrow.parquet.write_table(pa.table(arrays), path)


def _typed(pa: Any, name: str, values: Sequence[Any]) -> Any:
    """A column as integers, floats, times (UTC) or text; one without a value is of floats."""
    if name == "started":
        times = [None if value is None else datetime.fromisoformat(value) for value in values]
        return pa.array(times, pa.timestamp("us", tz="UTC"))
    given = [value for value in values if value is not None]
    if all(isinstance(value, int) and not isinstance(value, bool) for value in given) and given:
        return pa.array(values, pa.int64())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
