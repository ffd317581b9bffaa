"""The SQL views of the contract: sweep_studies, sweep_trials, sweep_folds, sweep_failures.

They are made of Optuna's tables alone, on SQLite and Postgres alike, so any SQL client can read
them. `sweep_trials` has a column for every knob of every study in the database: it is made anew
when a study brings a new knob. The text of a view says all about it, so a view whose text has not
changed is left alone (on Postgres replacing one waits for its readers).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from sweep.store import postgres_sql, sqlite_sql

HEAD = ("study", "trial", "state", "score", "score_se")
TAIL = ("failure_kind", "failure_reason", "started", "seconds")
MAX_KNOBS = 1500
"""SQLite allows 2,000 columns and Postgres 1,664; further knobs are in trial_params only."""
# Postgres cuts identifiers to 63 bytes, which can make two of them equal.
_MAX_BYTES = 63
# A view of the user's own stands on ours; somebody is reading ours in an open transaction.
_KEPT_FROM_US = {"2BP01", "55P03"}


class Column(NamedTuple):
    """A knob as a column of sweep_trials; `kind` is integer, real or text."""

    name: str
    knob: str
    kind: str


def refresh_views(connection: Connection) -> None:
    """Make the views as the studies now need them; the caller holds the schema lock."""
    existing = _existing(connection)
    for name, sql in definitions(connection).items():
        if existing.get(name) == _mark(connection, sql):
            continue
        try:
            with connection.begin_nested():
                postgres = connection.dialect.name == "postgresql"
                if postgres:
                    _execute(connection, "SET LOCAL lock_timeout = '3s'")
                _execute(connection, f"DROP VIEW IF EXISTS {name}")
                _execute(connection, sql)
                if postgres:
                    _execute(connection, f"COMMENT ON VIEW {name} IS '{_mark(connection, sql)}'")
                    _execute(connection, "SET LOCAL lock_timeout = DEFAULT")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _KEPT_FROM_US:
                raise
            # Better a missing column than no study: the next query tries again.
            logging.getLogger(__name__).warning("View %s is not renewed: %s", name, error.orig)


def drop_views(connection: Connection) -> None:
    """Drop all four (on Postgres views keep Optuna's columns from being migrated)."""
    for name in ("sweep_failures", "sweep_folds", "sweep_trials", "sweep_studies"):
        _execute(connection, f"DROP VIEW IF EXISTS {name}")


def stale(connection: Connection) -> bool:
    """True when `refresh_views` would change something."""
    existing = _existing(connection)
    wanted = definitions(connection)
    return any(existing.get(name) != _mark(connection, sql) for name, sql in wanted.items())


def definitions(connection: Connection) -> dict[str, str]:
    """CREATE VIEW statements by name, for the knobs that the database holds now."""
    sql = postgres_sql if connection.dialect.name == "postgresql" else sqlite_sql
    columns = knob_columns(connection)
    return {
        "sweep_studies": f"CREATE VIEW sweep_studies AS\n{_studies(sql)}",
        "sweep_trials": f"CREATE VIEW sweep_trials AS\n{_trials(sql, columns)}",
        "sweep_folds": f"CREATE VIEW sweep_folds AS\n{sql.FOLDS}",
        "sweep_failures": f"CREATE VIEW sweep_failures AS\n{sql.FAILURES}",
    }


def knob_columns(connection: Connection) -> list[Column]:
    """Every knob in the database, by name, with a column name that both databases can hold.

    A knob's kind is numeric where all its values, fixed and varied, in all studies are numbers or
    null, else text. One that nobody has tried yet counts as numeric.
    """
    kinds: dict[str, set[str]] = {}
    knobs = connection.exec_driver_sql(
        "SELECT value_json FROM study_user_attributes WHERE key = 'knobs'"
    )
    for (text,) in knobs:
        attr = json.loads(text)
        attr = attr if isinstance(attr, dict) else {}
        fixed = attr.get("fixed")
        for name, value in fixed.items() if isinstance(fixed, dict) else ():
            kinds.setdefault(str(name), set()).add(_kind(value))
        varied = attr.get("varied")
        for name in varied if isinstance(varied, list) else ():
            kinds.setdefault(str(name), set())
    tried = connection.exec_driver_sql(
        "SELECT DISTINCT param_name, distribution_json FROM trial_params"
    )
    for name, text in tried:
        distribution = json.loads(text)
        kind = str(distribution.get("name"))
        if kind.startswith("Categorical"):
            choices: Iterable[Any] = distribution["attributes"]["choices"]
            kinds.setdefault(name, set()).update(map(_kind, choices))
        else:
            kinds.setdefault(name, set()).add("integer" if kind.startswith("Int") else "real")
    columns = []
    for knob, name in column_names(kinds).items():
        found = kinds[knob]
        kind = "text" if "text" in found else "integer" if found == {"integer"} else "real"
        columns.append(Column(name, knob, kind))
    return columns


def column_names(knobs: Iterable[str]) -> dict[str, str]:
    """Knob -> its column in sweep_trials, of all the knobs in a database."""
    taken = set(HEAD) | set(TAIL)
    names: dict[str, str] = {}
    for knob in sorted(knobs)[:MAX_KNOBS]:
        names[knob] = _column_name(knob, taken)
        taken.add(names[knob].lower())
    return names


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool):
        return "integer"
    return "real" if isinstance(value, float) else "text"


def _column_name(knob: str, taken: set[str]) -> str:
    # Plain Optuna's parameters may be called `state`, or differ in case only.
    name = knob.replace("\0", "")
    while name.lower() in taken or not name:
        name = f"params.{name}"
    if len(name.encode()) > _MAX_BYTES:
        digest = hashlib.sha256(knob.encode()).hexdigest()[:8]
        start = name.encode()[: _MAX_BYTES - 9].decode(errors="ignore")
        name = f"{start}~{digest}"
    return name


def quoted(identifier: str) -> str:
    """An SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"


def _value(sql: Any) -> str:
    """A trial's value; Optuna stores infinities as NULL and a type."""
    return (
        f"CASE CAST(v.value_type AS VARCHAR(20)) WHEN 'INF_POS' THEN {sql.INFINITY} "
        f"WHEN 'INF_NEG' THEN -{sql.INFINITY} ELSE v.value END"
    )


def _studies(sql: Any) -> str:
    """One row a study."""
    return f"""\
SELECT s.study_name AS study,
       lower(CAST(d.direction AS VARCHAR(20))) AS direction,
       count(t.trial_id) AS trials,
       count(CASE WHEN t.state = 'COMPLETE' THEN 1 END) AS complete,
       count(CASE WHEN t.state = 'PRUNED' THEN 1 END) AS pruned,
       count(CASE WHEN t.state = 'FAIL' THEN 1 END) AS failed,
       count(CASE WHEN t.state = 'RUNNING' THEN 1 END) AS running,
       count(CASE WHEN t.state = 'WAITING' THEN 1 END) AS waiting,
       CASE WHEN d.direction = 'MAXIMIZE'
            THEN max(CASE WHEN t.state = 'COMPLETE' THEN {_value(sql)} END)
            ELSE min(CASE WHEN t.state = 'COMPLETE' THEN {_value(sql)} END) END AS best_score,
       min(t.datetime_start) AS started,
       max(t.datetime_complete) AS finished
  FROM studies s
  LEFT JOIN study_directions d ON d.study_id = s.study_id AND d.objective = 0
  LEFT JOIN trials t ON t.study_id = s.study_id
  LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
 GROUP BY s.study_id, s.study_name, d.direction"""


def _trials(sql: Any, columns: list[Column]) -> str:
    """One row a trial. The knobs are pivoted with max(CASE …): SQLite joins at most 64 tables."""

    pivot = "".join(
        f",\n           max(CASE WHEN name = {literal(column.knob)} "
        f"THEN {'text' if column.kind == 'text' else 'number'} END) AS k{i}"
        for i, column in enumerate(columns)
    )
    knobs = "".join(
        f",\n       {sql.CAST[column.kind].format(f'coalesce(c.k{i}, f.k{i})')}"
        f" AS {quoted(column.name)}"
        for i, column in enumerate(columns)
    )
    return f"""\
WITH f AS MATERIALIZED (
    SELECT study_id{pivot}
      FROM ({sql.FIXED}) p GROUP BY study_id)
SELECT s.study_name AS study,
       t.number AS trial,
       CAST(t.state AS VARCHAR(20)) AS state,
       CASE WHEN t.state = 'COMPLETE' THEN {_value(sql)} END AS score,
       {sql.SCORE_SE} AS score_se{knobs},
       {sql.failure_field("kind")} AS failure_kind,
       {sql.failure_field("reason")} AS failure_reason,
       t.datetime_start AS started,
       {sql.SECONDS} AS seconds
  FROM trials t
  JOIN studies s ON s.study_id = t.study_id
  LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
  LEFT JOIN trial_user_attributes e ON e.trial_id = t.trial_id AND e.key = 'score_se'
  LEFT JOIN trial_user_attributes x ON x.trial_id = t.trial_id AND x.key = 'failure'
  {sql.JOIN_CHOSEN.format(columns=pivot, source=sql.CHOSEN)}
  LEFT JOIN f ON f.study_id = t.study_id"""


def _execute(connection: Connection, statement: str) -> None:
    # Without parameters the driver leaves % and : in identifiers alone.
    connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def _mark(connection: Connection, sql: str) -> str:
    """What `_existing` finds for a view made by this statement."""
    if connection.dialect.name == "sqlite":
        return sql
    return "sweep " + hashlib.sha256(sql.encode()).hexdigest()


def _existing(connection: Connection) -> dict[str, str | None]:
    """View name -> its text (SQLite) or the comment that `refresh_views` left on it (Postgres)."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'view' AND name LIKE 'sweep%'"
    else:
        query = (
            "SELECT relname, obj_description(oid) FROM pg_class "
            "WHERE relkind = 'v' AND relname LIKE 'sweep%' AND pg_table_is_visible(oid)"
        )
    return dict(connection.execute(sa.text(query)).all())
