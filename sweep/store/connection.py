"""How the two databases are addressed, opened and written to, and what their errors say.

SQLite: write-ahead log, synchronous=NORMAL, foreign keys, a 60 s busy timeout, and BEGIN IMMEDIATE
for every write, so that two writers queue instead of failing each other with 'database is locked'.
Postgres: psycopg 3, a small pool that checks connections before use, and writes that are tried
again while the server restarts.
"""

from __future__ import annotations

import difflib
import logging
import os
import random
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from sweep.errors import RequestError, StorageError, SweepError

DEFAULT_URL = "sqlite:///sweep.db"
BUSY_SECONDS = 60.0
RESTART_SECONDS = 90.0
"""How long a write waits for a database that is locked, restarting or full of connections."""

_POSTGRES = {"postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"}
_SECRET_QUERY = {"password", "sslpassword"}
_FORMS = "Give sqlite:///FILE, a path, or postgresql://USER:PASSWORD@HOST/DATABASE."
T = TypeVar("T")


def storage_url(given: str | None) -> str:
    """`given`, else SWEEP_STORAGE, else sqlite:///sweep.db, in the one form the store uses.

    A bare path is an SQLite file; every spelling of Postgres becomes postgresql+psycopg://, and
    `?schema=NAME` there keeps everything in a schema of that name, made when it is needed.
    Raises RequestError for other databases and for an in-memory SQLite, which no second
    process or dashboard could see.
    """
    text = (given or os.environ.get("SWEEP_STORAGE") or DEFAULT_URL).strip()
    if re.match(r"(postgres\w*|sqlite|mysql)(\+\w+)?:(?!//)", text):
        raise RequestError(f"The storage address lacks the // after its first colon. {_FORMS}")
    if "://" not in text:
        text = f"sqlite:///{Path(text).expanduser()}"
    scheme, rest = text.split("://", 1)
    if scheme in _POSTGRES:
        text = f"postgresql+psycopg://{rest}"
    elif scheme not in ("sqlite", "sqlite+pysqlite"):
        raise RequestError(f"Studies are stored in SQLite or Postgres, not {scheme!r}. {_FORMS}")
    url = parsed(text)
    if url.get_backend_name() == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise RequestError(f"An in-memory SQLite database is gone at the end. {_FORMS}")
    if "schema" in url.query:
        url = _in_schema(url)
    return url.render_as_string(hide_password=False)


def _in_schema(url: URL) -> URL:
    schema = url.query["schema"]
    if not isinstance(schema, str) or not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
        raise RequestError(f"The schema {schema!r} is not a plain lower-case name.")
    if url.get_backend_name() != "postgresql" or "options" in url.query:
        raise RequestError("?schema=NAME is for Postgres, and not beside ?options=.")
    options = {"options": f"-csearch_path={schema}"}
    return url.difference_update_query(["schema"]).update_query_dict(options)


def parsed(url: str) -> URL:
    """`url` as SQLAlchemy's URL; raises RequestError without repeating what may hold a password."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise RequestError(f"The storage address cannot be read as a URL. {_FORMS}") from None


def shown(url: str | URL) -> str:
    """`url` as messages and logs show it: every password is ***."""
    address = parsed(url) if isinstance(url, str) else url
    hidden = {key: "***" for key in address.query if key in _SECRET_QUERY}
    return address.update_query_dict(hidden).render_as_string(hide_password=True)


def unknown_study(name: str, known: Sequence[str], url: str | URL) -> str:
    """The sentence for a study that is not in the database."""
    near = difflib.get_close_matches(name[:200], known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    there = ", ".join(repr(each) for each in known[:10]) + (", …" if len(known) > 10 else "")
    listed = f"Studies there: {there}. See: sweep studies" if known else "There are none yet."
    return f"No study {name[:60]!r} in {shown(url)}.{hint} {listed}"


def connect(url: str) -> Engine:
    """An engine on `url` (as `storage_url` gives it), with the settings both databases need."""
    address = parsed(url)
    try:
        if address.get_backend_name() == "sqlite":
            if sqlite3.sqlite_version_info < (3, 38):
                raise StorageError(
                    f"SQLite {sqlite3.sqlite_version} is too old: 3.38 or newer is needed."
                )
            engine = sa.create_engine(address, connect_args={"timeout": BUSY_SECONDS})
            event.listen(engine, "connect", set_pragmas)
            event.listen(engine, "connect", _leave_begin_to_us)
            event.listen(engine, "begin", _begin)
            return engine
        # It reports what a broken connection leaves undone; `write` does it again.
        logging.getLogger("psycopg").setLevel(logging.ERROR)
        timeout = {} if "connect_timeout" in address.query else {"connect_timeout": 10}
        return sa.create_engine(
            address, pool_size=2, max_overflow=4, pool_pre_ping=True, connect_args=timeout
        )
    except NoSuchModuleError:
        raise RequestError(f"No driver for {shown(address)}. {_FORMS}") from None


def set_pragmas(connection: Any, record: object) -> None:
    """For every new SQLite connection, Optuna's own too."""
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")


def _leave_begin_to_us(connection: Any, record: object) -> None:
    # sqlite3 begins a transaction before the first INSERT only, and not at all before DDL.
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


def write(engine: Engine, work: Callable[[Connection, bool], T]) -> T:
    """Run `work(connection, again)` in one transaction and commit it.

    `again` is False the first time. When the database is locked or goes away the transaction is
    run again, with growing pauses, for up to RESTART_SECONDS; `again` is then True, because the
    connection may have broken after the server committed and before it could say so: work that
    must not happen twice looks for its own traces first.
    """
    writer = engine.execution_options(sqlite_begin="IMMEDIATE")

    def attempt(again: bool) -> T:
        with writer.begin() as connection:
            return work(connection, again)

    return _patiently(engine, attempt)


def read(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work(connection)` in one transaction that is rolled back, tried again as `write` is."""

    def attempt(again: bool) -> T:
        with engine.connect() as connection:
            return work(connection)

    return _patiently(engine, attempt)


def _patiently(engine: Engine, attempt: Callable[[bool], T]) -> T:
    deadline = time.monotonic() + RESTART_SECONDS
    pause, again = 0.05, False
    while True:
        try:
            return attempt(again)
        except (DBAPIError, sqlite3.Error) as error:
            if not passing(error) or time.monotonic() > deadline:
                raise storage_error(engine.url, error) from error
        again = True
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, 2.0)


# Deadlock and serialization failures, a server that is stopping or starting, too many connections.
_PASSING_STATES = {"40001", "40P01", "57P01", "57P02", "57P03", "53300"}
_PASSING_WORDS = (
    "database is locked",
    "database table is locked",
    "database schema is locked",
    "connection refused",
    "server closed the connection",
    "starting up",
    "shutting down",
    "terminating connection",
    "connection is lost",
    "the connection is closed",
    "too many clients",
    "broken pipe",
    "connection reset",
)


def passing(error: BaseException) -> bool:
    """True for errors that go away when the same transaction is tried again later."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None)
    if state is not None and (state in _PASSING_STATES or state.startswith("08")):
        return True
    message = str(original).lower()
    return any(words in message for words in _PASSING_WORDS)


# What the driver says -> what to tell the user. {url} is shown() of the address.
_SENTENCES: list[tuple[str, type[SweepError], str]] = [
    ("file is not a database", RequestError, "{url} is not an SQLite database. Give another file."),
    ("unable to open database", StorageError, "{url} cannot be opened: {why}"),
    ("readonly database", StorageError, "{url} is read-only: nothing can be stored in it. {why}"),
    ("disk is full", StorageError, "{url}: the disk is full. Free some space and run again."),
    ("disk image is malformed", StorageError, "{url} is damaged. Restore it from a copy."),
    ("is locked", StorageError, "{url} has been locked by another program for a minute. {why}"),
    ("disk i/o error", StorageError, "{url} cannot be read or written: disk I/O error."),
]


def storage_error(url: URL, error: BaseException) -> SweepError:
    """`error` of a driver as one of ours: a sentence that names the address, never a password."""
    original = getattr(error, "orig", None) or error
    message = str(original)
    for words, kind, sentence in _SENTENCES:
        if words in message.lower():
            return kind(sentence.format(url=shown(url), why=_why(url)).strip())
    first = message.strip().splitlines()[0] if message.strip() else type(original).__name__
    if url.password:
        first = first.replace(str(url.password), "***")
    unreachable = isinstance(error, OperationalError) and not getattr(original, "sqlstate", None)
    if url.get_backend_name() == "postgresql" and unreachable:
        return StorageError(f"Postgres at {shown(url)} cannot be reached: {first}")
    return StorageError(f"{shown(url)}: {first}")


def read_only_file(url: URL) -> bool:
    """True for an SQLite file that is there and that this process may not write, or its folder."""
    path = Path(url.database or "")
    if url.get_backend_name() != "sqlite" or not os.path.isfile(path):
        return False
    return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def _why(url: URL) -> str:
    """What the file system says about an SQLite file that cannot be opened or written."""
    path = Path(url.database or "")
    # os.path: pathlib raises where a folder on the way may not be entered.
    if os.path.isdir(path):
        return f"{path} is a folder."
    if not os.path.exists(path.parent):
        return f"the folder {path.parent} does not exist."
    if os.path.exists(path) and not os.access(path, os.W_OK):
        return f"The file {path} may not be written."
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"The folder {path.parent} may not be written."
    if not os.path.exists(path):
        return f"no file can be made in {path.parent}."
    return ""
