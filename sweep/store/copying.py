"""Studies copied row by row: from one database to another, or several into one.

Optuna's tables are the same everywhere, so rows are copied as they stand and only their keys
change: numbers, states, times, attributes and values stay what they were. What is not copied is
the work of the moment: a trial that is being trained there is WAITING here, and the next run
trains it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna.storages._rdb.models as models
import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import URL, Connection, Engine

from sweep.errors import RequestError
from sweep.store import rows
from sweep.store.connection import connect, read, shown, storage_url, unknown_study, write
from sweep.store.schema import claims, ensure_schema, lock_schema, nothing_missing
from sweep.store.views import refresh_views

study_system_attrs: sa.Table = models.StudySystemAttributeModel.__table__
OF_STUDY = (rows.directions, rows.study_attrs, study_system_attrs)
OF_TRIAL = (rows.params, rows.values, rows.intermediates, rows.user_attrs, rows.system_attrs)
_CHUNK = 1000
# The dashboard keeps its notes on trials among the study's attributes, by the trial's id.
_TRIAL_NOTE = re.compile(r"dashboard:(\d+):(.+)", re.DOTALL)


@dataclass(frozen=True)
class Copied:
    """A study that was copied: its name there, its name here, and how many trials it has."""

    source: str
    name: str
    trials: int


def study_names(url: str) -> list[str]:
    """The studies in the database at `url`, oldest first; nothing there is changed."""
    with _source(url) as engine:
        return read(engine, names)


def copy_studies(
    source: str, target: str, renamed: Mapping[str, str] | None = None
) -> list[Copied]:
    """Copies studies from one database to another: all of those asked for, or none.

    `renamed` is {name there: name here} (default: every study, as it is called). `target` is
    made where there is none. The source may be plain Optuna's and is not changed. Raises
    RequestError for a study that is not there, and for a name that is taken.
    """
    with _source(source) as there, _target(target) as here:
        known = read(there, names)
        wanted = dict(renamed) if renamed is not None else {name: name for name in known}
        for name in wanted:
            if name not in known:
                raise RequestError(unknown_study(name, known, there.url))

        def work(connection: Connection, again: bool) -> list[Copied]:
            lock_schema(connection)
            taken = names(connection)
            # Committed before the connection broke: the names were free the first time.
            done = again and set(wanted.values()) <= set(taken)
            with _snapshot(there) as origin:
                if done:
                    return [Copied(old, new, count(origin, old)) for old, new in wanted.items()]
                check_free(wanted.values(), taken, here.url, "Give another name: --name NAME")
                copied = [_copy_study(origin, connection, old, new) for old, new in wanted.items()]
            refresh_views(connection)
            return copied

        return write(here, work)


def check_free(new: Iterable[str], taken: Sequence[str], url: str | URL, advice: str) -> None:
    """Raises RequestError, ending in `advice`, where one of `new` is among the names `taken`."""
    for name in new:
        if name in taken:
            raise RequestError(f"There is a study {name[:60]!r} in {shown(url)} already. {advice}")


def copy_trials(
    origin: Connection, connection: Connection, study_id: int, into: int, first: int
) -> dict[int, int]:
    """Copies all trials of `study_id`, numbered from `first` on; {id there: id here}."""
    wanted = (
        sa.select(rows.trials)
        .where(rows.trials.c.study_id == study_id)
        .order_by(rows.trials.c.number)
    )
    found = origin.execute(wanted).mappings().all()
    has_claims = sa.inspect(origin).has_table(claims.name)
    ids: dict[int, int] = {}
    for start in range(0, len(found), _CHUNK):
        some = found[start : start + _CHUNK]
        held = _claims(origin, [row["trial_id"] for row in some]) if has_claims else {}
        ids |= _insert_trials(connection, some, held, into, first)
        moved = {row["trial_id"]: ids[row["trial_id"]] for row in some}
        # What an unfinished attempt has reported goes with the attempt.
        settled = {there: here for there, here in moved.items() if there not in held}
        for table in OF_TRIAL:
            mine = settled if table is rows.intermediates else moved
            _copy_rows(origin, connection, table, "trial_id", mine)
        _insert_claims(connection, held, moved, into)
    return ids


def count(connection: Connection, study: str) -> int:
    """How many trials the study of this name has."""
    c = rows.trials.c
    counted = (
        sa.select(sa.func.count(c.trial_id))
        .join(rows.studies, rows.studies.c.study_id == c.study_id)
        .where(rows.studies.c.study_name == study)
    )
    return int(connection.execute(counted).scalar_one())


def _copy_study(origin: Connection, connection: Connection, old: str, new: str) -> Copied:
    c = rows.studies.c
    study_id = origin.execute(sa.select(c.study_id).where(c.study_name == old)).scalar_one()
    insert = sa.insert(rows.studies).values(study_name=new).returning(c.study_id)
    into = connection.execute(insert).scalar_one()
    ids = copy_trials(origin, connection, study_id, into, first=0)
    for table in OF_STUDY:
        _copy_rows(origin, connection, table, "study_id", {study_id: into}, ids)
    return Copied(old, new, len(ids))


def _insert_trials(
    connection: Connection,
    some: Sequence[Mapping[Any, Any]],
    held: Mapping[int, Mapping[Any, Any]],
    into: int,
    first: int,
) -> dict[int, int]:
    new = []
    for row in some:
        given_back = row["trial_id"] in held
        new.append(
            {
                "study_id": into,
                "number": first + row["number"],
                "state": TrialState.WAITING if given_back else row["state"],
                "datetime_start": None if given_back else row["datetime_start"],
                "datetime_complete": row["datetime_complete"],
            }
        )
    statement = sa.insert(rows.trials).returning(
        rows.trials.c.trial_id, sort_by_parameter_order=True
    )
    made = connection.execute(statement, new).scalars()
    return {row["trial_id"]: trial_id for row, trial_id in zip(some, made, strict=True)}


def _claims(origin: Connection, ids: Sequence[int]) -> dict[int, Mapping[Any, Any]]:
    """The claims on unfinished trials, by trial."""
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    wanted = (
        sa.select(claims)
        .join(rows.trials, rows.trials.c.trial_id == claims.c.trial_id)
        .where(claims.c.trial_id.in_(ids), rows.trials.c.state.in_(unfinished))
    )
    return {row["trial_id"]: row for row in origin.execute(wanted).mappings()}


def _insert_claims(
    connection: Connection,
    held: Mapping[int, Mapping[Any, Any]],
    moved: Mapping[int, int],
    into: int,
) -> None:
    new = [
        {
            **row,
            "trial_id": moved[row["trial_id"]],
            "study_id": into,
            "worker": None,
            # As when a worker gives a trial back: the attempt does not count.
            "attempts": row["attempts"] - (row["worker"] is not None),
        }
        for row in held.values()
    ]
    if new:
        connection.execute(sa.insert(claims), new)


def _copy_rows(
    origin: Connection,
    connection: Connection,
    table: sa.Table,
    key: str,
    moved: Mapping[int, int],
    trial_ids: Mapping[int, int] | None = None,
) -> None:
    """The table's rows of the owners `moved` {id there: id here}, in the order of their making."""
    (own,) = table.primary_key.columns
    for some in rows.chunks(moved):
        wanted = sa.select(table).where(table.c[key].in_(some)).order_by(own)
        new = []
        for row in origin.execute(wanted).mappings():
            values = {name: value for name, value in row.items() if name != own.name}
            values[key] = moved[row[key]]
            if "value_json" in values:
                values["value_json"] = _strict_json(values["value_json"])
            note = _TRIAL_NOTE.fullmatch(values.get("key", "")) if trial_ids else None
            if note is not None and trial_ids is not None:
                here = trial_ids.get(int(note[1]))
                if here is None:
                    continue
                values["key"] = f"dashboard:{here}:{note[2]}"
            new.append(values)
        if new:
            connection.execute(sa.insert(table), new)


def _strict_json(text: str) -> str:
    """`text`, with null for the bare NaN and Infinity that plain Optuna writes and SQL refuses."""
    if "NaN" not in text and "Infinity" not in text and "\\u0000" not in text:
        return text
    return rows.to_json(json.loads(text))


def names(connection: Connection) -> list[str]:
    """The studies of the database, oldest first."""
    c = rows.studies.c
    return list(connection.execute(sa.select(c.study_name).order_by(c.study_id)).scalars())


@contextmanager
def _engine(url: str, prepare: Callable[[Engine], object]) -> Iterator[Engine]:
    engine = connect(storage_url(url))
    try:
        prepare(engine)
        yield engine
    finally:
        engine.dispose()


def _source(url: str) -> AbstractContextManager[Engine]:
    return _engine(url, partial(nothing_missing, create=False))


def _target(url: str) -> AbstractContextManager[Engine]:
    return _engine(url, partial(ensure_schema, create=True))


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees the database as it is at one moment."""
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        yield connection
