"""SQL from users, on connections that the database itself keeps from writing.

SQLite: the file is opened with mode=ro and query_only, and an authorizer allows reading and calling
functions, nothing else (ATTACH, for one, would make files even then). Postgres: a READ ONLY
transaction that is always rolled back, the statement as the query of a cursor in the extended
protocol, so that it is one statement and one that only reads; as the role pg_read_all_data where
the user is a superuser, whom Postgres would let write files. A superuser may leave that role again,
by a function and not otherwise: the functions that set it, or that run SQL out of a string, are
refused by name, as are those whose effects outlive a transaction. Functions of a database's own are
its owner's affair. Both stop after a time limit, and at more values than memory is meant for.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy.engine import URL

from sweep.errors import RequestError, StorageError, SweepError
from sweep.store.connection import (
    BUSY_SECONDS,
    connect,
    parsed,
    read_only_file,
    shown,
    storage_error,
)
from sweep.store.lexer import (
    as_pyformat,
    first_word,
    identifiers,
    one_reading_statement,
    parameters,
)

if TYPE_CHECKING:
    import psycopg

TIMEOUT = 60.0
MAX_VALUES = 10_000_000
"""Rows times columns of an answer."""
_PIECE = 5000


@dataclass(frozen=True)
class Rows:
    """An answer: column names, and one tuple of numbers, texts, booleans or None a row."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> list[dict[str, Any]]:
        """One dict a row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)


Ask = Callable[..., Rows]
"""ask(sql, params=None) -> Rows"""


@contextmanager
def reader(url: str, timeout: float = TIMEOUT) -> Iterator[Ask]:
    """A read-only connection to the database at `url`, as a function of SQL and parameters.

    Parameters are written `:name`. Every statement may take `timeout` seconds; StorageError after
    that. RequestError for SQL that is no single reading statement, or that the database refuses.
    """
    address = parsed(url)
    opened = _sqlite if address.get_backend_name() == "sqlite" else _postgres
    with opened(address, timeout) as ask:

        def checked(sql: str, params: Mapping[str, Any] | None = None) -> Rows:
            statement = one_reading_statement(sql)
            given, wanted = dict(params or {}), parameters(statement)
            missing = [name for name in wanted if name not in given]
            extra = [name for name in given if name not in wanted]
            if missing:
                raise RequestError(f"The SQL asks for :{missing[0]}, which has no value.")
            if extra:
                raise RequestError(f"The parameter {extra[0]!r} does not occur in the SQL.")
            return ask(statement, given)

        yield checked


def run_sql(
    url: str, sql: str, params: Mapping[str, Any] | None = None, timeout: float = TIMEOUT
) -> Rows:
    """The answer to one SELECT, WITH, VALUES or EXPLAIN statement; see `reader`."""
    with reader(url, timeout) as ask:
        return ask(sql, params)


_PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info"}
_UNSAFE_FUNCTIONS = {"load_extension", "fts3_tokenizer", "writefile", "readfile", "edit"}
_MAX_VALUE_BYTES = 200_000_000


def _authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and second not in _UNSAFE_FUNCTIONS:
        return sqlite3.SQLITE_OK
    # As table-valued functions: SELECT * FROM pragma_table_info('trials').
    if action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


@contextmanager
def _sqlite(address: URL, timeout: float) -> Iterator[Ask]:
    path = address.database or ""
    # A write-ahead log needs a file to be made beside the database, even to read. Where none can
    # be made and none is there, nobody is writing either.
    still = read_only_file(address) and not Path(f"{path}-wal").exists()
    try:
        connection = sqlite3.connect(
            f"file:{quote(path)}?mode=ro{'&immutable=1' if still else ''}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
        )
    except sqlite3.Error as error:
        raise storage_error(address, error) from error
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        connection.set_authorizer(_authorize)

        def ask(sql: str, params: Mapping[str, Any]) -> Rows:
            deadline = time.monotonic() + timeout
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            try:
                found = connection.execute(sql, dict(params))
                columns = [column[0] for column in found.description or ()]
                return Rows(columns, _collected(lambda: found.fetchmany(_PIECE)))
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
                raise _refusal(address, error, timeout, ask) from error

        yield ask
    finally:
        connection.close()


@contextmanager
def _postgres(address: URL, timeout: float) -> Iterator[Ask]:
    import psycopg

    engine = connect(address.render_as_string(hide_password=False))
    _, arguments = engine.dialect.create_connect_args(address)
    arguments.setdefault("connect_timeout", 10)
    try:
        connection = psycopg.connect(**arguments)
    except psycopg.Error as error:
        raise storage_error(address, error) from error
    connection.read_only = True
    untyped = (
        psycopg.errors.IndeterminateDatatype,
        psycopg.errors.AmbiguousParameter,
        psycopg.errors.DatatypeMismatch,
    )
    with connection:

        def ask(sql: str, params: Mapping[str, Any]) -> Rows:
            _refuse_escapes(sql)
            try:
                _prepare(connection, timeout)
                try:
                    return _fetch(connection, sql, params, timeout)
                except untyped:
                    # Nothing in the statement says what a parameter is: then it is text.
                    connection.rollback()
                    _prepare(connection, timeout)
                    texts = {k for k, v in params.items() if v is None or isinstance(v, str)}
                    return _fetch(connection, sql, params, timeout, texts)
            except psycopg.Error as error:
                connection.rollback()
                raise _refusal(address, error, timeout, ask) from error
            finally:
                connection.rollback()

        yield ask


_ESCAPES = re.compile(
    r"set_config|query_to_xml\w*|cursor_to_xml\w*|ts_stat|ts_rewrite|dblink\w*"
    r"|pg_logical_emit_message|pg_notify|pg_(create|copy|drop)_\w*replication_slot"
)


def _refuse_escapes(sql: str) -> None:
    for name in identifiers(sql):
        if _ESCAPES.fullmatch(name):
            raise RequestError(f"Queries only read, and {name} could do more: it is not run here.")


def _collected(next_piece: Callable[[], Sequence[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    while piece := next_piece():
        found += piece
        if len(found) * len(piece[0]) > MAX_VALUES:
            raise RequestError(
                f"The answer has more than {MAX_VALUES:,} values. Add a LIMIT, or ask for counts "
                "and means."
            )
    return found


def _prepare(connection: psycopg.Connection[Any], timeout: float) -> None:
    connection.execute(f"SET LOCAL statement_timeout = {max(1, int(timeout * 1000))}")
    # Otherwise a backslash could end a string where the lexer sees none ending.
    connection.execute("SET LOCAL standard_conforming_strings = on")
    reduced = connection.execute(
        "SELECT 1 FROM pg_roles me, pg_roles r WHERE me.rolname = current_user AND me.rolsuper "
        "AND r.rolname = 'pg_read_all_data'"
    ).fetchone()
    if reduced:
        # "$user" in the search path would become the role's name.
        connection.execute(
            "SELECT set_config('search_path', (SELECT string_agg(quote_ident(name), ',') "
            "FROM unnest(current_schemas(false)) AS name), true)"
        )
        connection.execute("SET LOCAL ROLE pg_read_all_data")


def _fetch(
    connection: psycopg.Connection[Any],
    sql: str,
    params: Mapping[str, Any],
    timeout: float,
    texts: Collection[str] = (),
) -> Rows:
    text: Any = as_pyformat(sql, texts) if params else sql
    values = dict(params) or None
    if first_word(sql) == "EXPLAIN":
        # No cursor takes EXPLAIN; prepared, it is one statement in the read-only transaction too.
        cursor = connection.execute(text, values, prepare=True)
        columns = [column.name for column in cursor.description or ()]
        return Rows(columns, [tuple(map(_plain, row)) for row in cursor.fetchall()])
    deadline = time.monotonic() + timeout
    with connection.cursor(name="sweep_sql") as named:
        named.execute(text, values)
        columns = [column.name for column in named.description or ()]

        def next_piece() -> list[tuple[Any, ...]]:
            # Each piece gets what is left of the time.
            left = max(1, int((deadline - time.monotonic()) * 1000))
            connection.execute(f"SET LOCAL statement_timeout = {left}")
            return [tuple(map(_plain, row)) for row in named.fetchmany(_PIECE)]

        return Rows(columns, _collected(next_piece))


def _plain(value: Any) -> Any:
    """What Postgres gives for a value as SQLite would: numbers, text, None."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    if isinstance(value, Decimal):
        if not value.is_finite():
            return float(value)
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return value.isoformat() if isinstance(value, date) else str(value)


_NO_COLUMN = re.compile(r"no such column: (\S+)|column (.+?) does not exist", re.IGNORECASE)
_NO_TABLE = re.compile(r'no such table: (\S+)|relation "?(.+?)"? does not exist', re.IGNORECASE)
_WRITES = ("not authorized", "prohibited", "readonly", "read-only", "permission denied")
_TOO_LONG = ("interrupted", "statement timeout")


def _refusal(address: URL, error: BaseException, timeout: float, ask: Ask) -> SweepError:
    """What the database said about a user's SQL, in one sentence."""
    message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    low = message.lower()
    if any(words in low for words in _TOO_LONG):
        return StorageError(
            f"The query was stopped after {timeout:g} s. Narrow it, or allow more time."
        )
    if any(words in low for words in _WRITES):
        return RequestError(f"Queries only read, and this one does not: {message}")
    if match := _NO_COLUMN.search(message):
        name = (match.group(1) or match.group(2)).replace('"', "")
        return RequestError(f"No column {name!r} here.{_columns(ask, name)}")
    if match := _NO_TABLE.search(message):
        return RequestError(
            f"No table or view {match.group(1) or match.group(2)!r} in {shown(address)}. "
            "The views are sweep_studies, sweep_trials, sweep_folds and sweep_failures."
        )
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, sqlite3.DatabaseError) and "not a database" in low:
        return storage_error(address, error)
    if address.get_backend_name() == "postgresql" and (not sqlstate or sqlstate[:2] in "08 57 53"):
        return storage_error(address, error)
    return RequestError(f"The SQL is refused: {message}")


def _columns(ask: Ask, missing: str) -> str:
    try:
        found: Sequence[str] = ask("SELECT * FROM sweep_trials WHERE 1 = 0", {}).columns
    except SweepError:
        return ""
    return " " + nearest(missing.split(".")[-1], found)


def nearest(given: str, known: Sequence[str]) -> str:
    """`Did you mean 'b'? sweep_trials has: a, b, c`."""
    import difflib

    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    return f"{meant}sweep_trials has: {', '.join(known)}"
