"""Tables of an older Optuna: refused with the command that helps, copied, brought up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest

from sweep.errors import RequestError, StorageError
from sweep.store import queries
from sweep.store.storage import Store
from sweep.store.upgrade import upgrade


@pytest.fixture
def old(database_url: str) -> str:
    """A database as Optuna 3.1 left it: an index less, and so it says."""
    storage = optuna.storages.RDBStorage(database_url)
    study = optuna.create_study(storage=storage, study_name="old")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    storage.remove_session()
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_trials_study_id")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    storage.engine.dispose()
    return database_url


def test_an_older_database_is_refused_with_the_command_that_helps(old: str) -> None:
    with pytest.raises(StorageError, match="Run: sweep upgrade"):
        Store.open(old)


def test_an_older_database_is_upgraded_and_keeps_its_trials(old: str) -> None:
    if old.startswith("postgresql"):
        with pytest.raises(RequestError, match="pg_dump"):
            upgrade(old)
        done = upgrade(old, copy=False)
    else:
        copied, *done = upgrade(old)
        copy = Path(copied.removeprefix("Copied the database to ").removesuffix("."))
        with sqlite3.connect(copy) as database:
            version = database.execute("SELECT version_num FROM alembic_version").fetchone()
        database.close()
        assert version == ("v3.0.0.d",)
    assert done == ["Upgraded Optuna's tables from v3.0.0.d to v3.2.0.a."]
    assert len(queries.trials(old, "old")) == 3
    assert "up to date" in upgrade(old)[0]


def test_there_must_be_a_database(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No study database"):
        upgrade(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []
