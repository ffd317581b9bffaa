"""A database that cannot be used is one clear sentence, and the work done before is kept."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution

from sweep.errors import RequestError, StorageError, SweepError
from sweep.store import queries
from sweep.store.storage import Store, new_worker
from tests.store.studies import small_study

ROOT = Path(__file__).parents[2]


def in_a_sentence(error: SweepError) -> str:
    message = str(error)
    assert "\n" not in message and "Traceback" not in message and "sqlalche.me" not in message
    return message


def test_no_database_is_made_by_asking(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'none.db'}"
    for ask in (Store.open, queries.studies):
        with pytest.raises(RequestError, match=r"No study database at .*none\.db.*sweep run FILE"):
            ask(url)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_postgres_database_has_no_studies_yet(postgres_url: str) -> None:
    with pytest.raises(RequestError, match="No study database at"):
        queries.studies(postgres_url)


def test_a_postgres_database_that_is_not_there(postgres_url: str) -> None:
    with pytest.raises(StorageError, match=r'cannot be reached.*"nowhere" does not exist') as error:
        Store.open(postgres_url.rsplit("/", 1)[0] + "/nowhere")
    assert "s3cret" not in in_a_sentence(error.value)


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is not a database, but it is long enough to be looked at." * 20)
    with pytest.raises(RequestError, match=r"notes.txt is not an SQLite database") as error:
        Store.open(str(path), create=create)
    in_a_sentence(error.value)
    assert path.read_text().startswith("This is not")
    with pytest.raises(RequestError, match="is not an SQLite database"):
        queries.studies(str(path))


@pytest.mark.parametrize(
    ("name", "why"), [("no/such/x.db", "does not exist"), (".", "is a folder")]
)
def test_a_path_that_cannot_be_opened(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(StorageError, match=f"cannot be opened: .*{why}") as error:
        Store.open(str(tmp_path / name), create=True)
    in_a_sentence(error.value)


@pytest.mark.parametrize(
    ("table", "version", "sentence"),
    [
        ("alembic_version", "v99.0.0.a", "newer Optuna .*pip install -U optuna"),
        ("alembic_version", "v2.6.0.a", "older Optuna .*sweep upgrade"),
        ("sweep_alembic_version", "v9999", "newer sweep .*pip install -U sweep"),
    ],
)
def test_tables_of_another_version(
    database_url: str, table: str, version: str, sentence: str
) -> None:
    with Store.open(database_url, create=True) as store:
        small_study(store)
        with store.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE {table} SET version_num = '{version}'")
    for create in (True, False):
        with pytest.raises(StorageError, match=sentence) as error:
            Store.open(database_url, create=create)
        in_a_sentence(error.value)


AS_NOBODY = """
import os, pwd, sys
import sqlalchemy.dialects.sqlite
from sweep.store import queries
from sweep.store.storage import Store
from sweep.errors import SweepError
url = sys.argv[1]
if os.geteuid() == 0:  # root may write everything
    os.setuid(pwd.getpwnam("nobody").pw_uid)
print(len(queries.trials(url, "ridge")))
try:
    with Store.open(url, create=True) as store:
        store.create_study("x", "minimize", {})
except SweepError as error:
    print(error)
"""


def test_a_read_only_file_is_read_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "sweep.db"
    with Store.open(str(path), create=True) as store:
        small_study(store)
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    tmp_path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    count, sentence = done.stdout.splitlines()
    assert count == "9"
    assert "is read-only: nothing can be stored in it" in sentence


def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "sweep.db"), create=True):
        pass
    tmp_path.chmod(0o700)
    code = AS_NOBODY.replace('print(len(queries.trials(url, "ridge")))', "")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "sweep.db")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if os.geteuid() == 0:
        assert "cannot be opened" in done.stdout


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "sweep.db"), create=True) as store:
        study = small_study(store)

        @sa.event.listens_for(store.engine, "connect")
        def full(connection: sqlite3.Connection, record: object) -> None:
            connection.execute("PRAGMA max_page_count = 80")

        store.engine.dispose()
        new = [({"x": 0.5}, {"x": FloatDistribution(0, 1)})] * 200
        with pytest.raises(StorageError, match="the disk is full"):
            for _ in range(200):
                store.create_trials(study, new, total=100_000, worker=new_worker())
        counts = store.counts(study)
        assert counts["COMPLETE"] == 3
        assert (sum(counts.values()) - 9) % 200 == 0


def test_writers_queue_behind_a_long_transaction(tmp_path: Path) -> None:
    path = tmp_path / "sweep.db"
    with Store.open(str(path), create=True) as store:
        small_study(store)
        blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        blocker.execute("BEGIN IMMEDIATE")
        threading.Timer(1.0, lambda: blocker.execute("COMMIT")).start()
        start = time.monotonic()
        store.create_study("second", "minimize", {})
        assert time.monotonic() - start > 0.5
        blocker.close()
