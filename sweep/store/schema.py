"""The tables: Optuna's own, the product's claims beside them, and their versions.

Both kinds keep their version in an Alembic table of their own: `alembic_version` is Optuna's,
`sweep_alembic_version` the product's. A database is created in one transaction that excludes every
other creator, so several processes may open a new database at once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from sweep.errors import RequestError, StorageError
from sweep.store.connection import read, read_only_file, shown, storage_error, write
from sweep.store.views import refresh_views, stale

OPTUNA_SCHEMA = "v3.2.0.a"
"""The revision of Optuna's tables that this store was written for (Optuna 3.2 to 5)."""
OWN_SCHEMA = "v0001"
OWN_VERSION_TABLE = "sweep_alembic_version"

# One number for every creator of tables or views in a Postgres database.
_LOCK = 0x73776565

claims = sa.Table(
    "sweep_claims",
    sa.MetaData(),
    sa.Column("trial_id", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(200)),
    sa.Column("lease_until", sa.Float(53), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
)


def lock_schema(connection: Connection) -> None:
    """Exclude other creators of tables and views until this transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def ensure_schema(engine: Engine, *, create: bool) -> None:
    """Make the database behind `engine` usable, or say in a sentence why it is not.

    A database of plain Optuna gets the product's tables and views added. Raises RequestError when
    there is no database and `create` is False, StorageError when its tables are of another version.
    """
    if nothing_missing(engine, create=create):
        return
    if engine.dialect.name == "sqlite":
        _switch_to_wal(engine)
    write(engine, _create)


def ensure_views(engine: Engine) -> None:
    """Make the views show every study in the database, those of plain Optuna too.

    A database that may not be written is read with the views it has; without any, StorageError.
    """
    if read_only_file(engine.url):
        return
    try:
        complete = nothing_missing(engine, create=False)
        if complete and not read(engine, stale):
            return
        write(engine, _renew_views if complete else _create)
    except StorageError:
        if not read(engine, lambda connection: sa.inspect(connection).has_table("sweep_trials")):
            raise


def nothing_missing(engine: Engine, *, create: bool) -> bool:
    """True when nothing is missing; raises what `ensure_schema` raises."""
    path = engine.url.database or ""
    sqlite = engine.dialect.name == "sqlite"
    empty = sqlite and (not os.path.exists(path) or os.path.getsize(path) == 0)
    if empty and not create:
        raise RequestError(_nothing_there(engine))
    # An unreachable server is reported at once; `write` waits only for one that was there before.
    try:
        with engine.connect() as connection:
            optuna_at, own_at = _revisions(connection)
            if optuna_at is None and not create:
                raise RequestError(_nothing_there(engine))
            log = connection.exec_driver_sql("PRAGMA journal_mode").scalar() if sqlite else None
    except DBAPIError as error:
        raise storage_error(engine.url, error) from error
    return optuna_at == OPTUNA_SCHEMA and own_at == OWN_SCHEMA and log in (None, "wal")


def _renew_views(connection: Connection, again: bool) -> None:
    lock_schema(connection)
    refresh_views(connection)


def _nothing_there(engine: Engine) -> str:
    return (
        f"No study database at {shown(engine.url)}. `sweep run FILE` makes one; "
        "--storage URL or SWEEP_STORAGE names another."
    )


def _revisions(connection: Connection) -> tuple[str | None, str | None]:
    """(Optuna's, the product's) revision; raises StorageError for tables of another version."""
    has = sa.inspect(connection).has_table
    optuna_at = own_at = None
    if has("alembic_version"):
        optuna_at = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    elif has("version_info"):
        optuna_at = "v0.9.0.a"  # before Optuna had Alembic
    if has(OWN_VERSION_TABLE):
        own_at = connection.exec_driver_sql(f"SELECT version_num FROM {OWN_VERSION_TABLE}").scalar()
    url = shown(connection.engine.url)
    if optuna_at not in (None, OPTUNA_SCHEMA):
        import optuna

        if optuna_at in _optuna_scripts()[1]:
            raise StorageError(
                f"The tables in {url} are of an older Optuna ({optuna_at}). Run: sweep upgrade"
            )
        raise StorageError(
            f"The tables in {url} are of a newer Optuna ({optuna_at}) than the installed "
            f"{optuna.__version__}. Update: pip install -U optuna"
        )
    if own_at is not None and own_at > OWN_SCHEMA:
        raise StorageError(
            f"{url} was written by a newer sweep (tables {own_at}, this one knows {OWN_SCHEMA}). "
            "Update: pip install -U sweep"
        )
    return optuna_at, own_at


def _switch_to_wal(engine: Engine) -> None:
    def switch(connection: Connection) -> None:
        # On the driver's connection, because a switch is refused inside a transaction. The busy
        # timeout does not cover it, the retries of `read` do.
        connection.connection.cursor().execute("PRAGMA journal_mode = WAL")

    read(engine, switch)


def _optuna_scripts() -> tuple[str, set[str]]:
    """(newest revision, every revision) that the installed Optuna knows."""
    import optuna.storages._rdb.models as models
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(models.__file__).parent / "alembic"))
    head = scripts.get_current_head()
    assert head is not None
    return head, {script.revision for script in scripts.walk_revisions()}


def _create(connection: Connection, again: bool) -> None:
    lock_schema(connection)
    if connection.dialect.name == "postgresql":
        _make_schema(connection)
    optuna_at, own_at = _revisions(connection)
    if optuna_at is None:
        _create_optuna_tables(connection)
    if own_at != OWN_SCHEMA:
        _migrate(connection)
    refresh_views(connection)


def _make_schema(connection: Connection) -> None:
    """Where the address asks for a schema that is not there yet (`storage_url`)."""
    if connection.exec_driver_sql("SELECT current_schema()").scalar() is None:
        wanted = str(connection.exec_driver_sql("SHOW search_path").scalar()).split(",")[0]
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {wanted.strip()}")


def _create_optuna_tables(connection: Connection) -> None:
    """What RDBStorage's constructor does, in our transaction."""
    import optuna
    import optuna.storages._rdb.models as models
    from alembic.migration import MigrationContext

    models.BaseModel.metadata.create_all(connection)
    connection.execute(
        sa.insert(models.VersionInfoModel.__table__).values(
            schema_version=models.SCHEMA_VERSION, library_version=optuna.__version__
        )
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    context = MigrationContext.configure(connection)
    head, _ = _optuna_scripts()
    context._ensure_version_table()
    connection.execute(sa.insert(context._version).values(version_num=head))


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    here = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(here).replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=OWN_VERSION_TABLE)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    command.upgrade(config, "head")
