"""`sweep upgrade`: the tables of an older Optuna brought to the version this store reads."""

from __future__ import annotations

import logging
import sqlite3
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from sweep.errors import RequestError
from sweep.store.connection import connect, shown, storage_url, write
from sweep.store.schema import OPTUNA_SCHEMA, ensure_schema, lock_schema
from sweep.store.views import drop_views


def upgrade(url: str, *, copy: bool = True) -> list[str]:
    """Upgrades the database at `url` and says in sentences what was done.

    With `copy` an SQLite file is first copied beside itself. A Postgres database cannot be copied
    from here, so `copy` is refused for it (RequestError names pg_dump). Raises StorageError for
    tables that are newer than the installed Optuna, RequestError where there is no database.
    """
    address = storage_url(url)
    engine = connect(address)
    try:
        done = []
        if _is_older(engine):
            if copy:
                done.append(f"Copied the database to {_copy(engine)}.")
            before = _upgrade_optuna(engine, address)
            done.append(f"Upgraded Optuna's tables from {before} to {OPTUNA_SCHEMA}.")
        # Whatever else is missing or older is the store's own, and made on opening.
        ensure_schema(engine, create=False)
        return done or [f"{shown(address)} is up to date."]
    finally:
        engine.dispose()


def _is_older(engine: Engine) -> bool:
    path = Path(engine.url.database or "")
    if engine.dialect.name == "sqlite" and not path.exists():
        return False
    with engine.connect() as connection:
        at = _optuna_version(connection)
    return at is not None and at < OPTUNA_SCHEMA


def _optuna_version(connection: Connection) -> str | None:
    has = sa.inspect(connection).has_table
    if has("alembic_version"):
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return None if found is None else str(found)
    # Before Optuna had Alembic.
    return "v0.9.0.a" if has("version_info") else None


def _copy(engine: Engine) -> Path:
    if engine.dialect.name != "sqlite":
        raise RequestError(
            f"Copy {shown(engine.url)} first, with pg_dump. Then: sweep upgrade --no-copy"
        )
    source = Path(engine.url.database or "")
    target = source.with_name(f"{source.name}.{datetime.now():%Y%m%d-%H%M%S}.copy")
    # Not a copy of the file, whose newest pages may still be in its write-ahead log.
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()
    return target


def _upgrade_optuna(engine: Engine, address: str) -> str:
    import optuna

    def forget_views(connection: Connection, again: bool) -> str:
        lock_schema(connection)
        before = _optuna_version(connection)
        # Postgres alters no column that a view looks at.
        drop_views(connection)
        return str(before)

    before = write(engine, forget_views)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    storage = optuna.storages.RDBStorage(
        address.replace("{", "{{").replace("}", "}}"), skip_compatibility_check=True
    )
    try:
        storage.upgrade()
    finally:
        storage.remove_session()
        storage.engine.dispose()
    return before
