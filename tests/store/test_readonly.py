"""SQL from users reads and never writes, by the database's own enforcement."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from sweep.errors import RequestError, StorageError, SweepError
from sweep.store.queries import run_sql, trials
from sweep.store.readonly import reader
from sweep.store.storage import Store
from tests.store.studies import small_study


@pytest.fixture
def url(database_url: str) -> str:
    with Store.open(database_url, create=True) as store:
        small_study(store)
    return database_url


def fingerprint(url: str) -> str:
    """Everything in the database, and every file beside it, as one hash."""
    digest = hashlib.sha256()
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        path = Path(address.database or "")
        with sqlite3.connect(path) as connection:
            for line in connection.iterdump():
                digest.update(line.encode())
        connection.close()
        ours = {path.name, path.name + "-wal", path.name + "-shm"}
        digest.update(str(sorted({p.name for p in path.parent.iterdir()} - ours)).encode())
        return digest.hexdigest()
    parts = address.translate_connect_args(username="user", database="dbname")
    with psycopg.connect(**parts, autocommit=True) as connection:
        names = connection.execute(
            "SELECT relname, relkind::text FROM pg_class c JOIN pg_namespace n "
            "ON n.oid = c.relnamespace WHERE nspname NOT LIKE 'pg\\_toast%' ORDER BY relname, c.oid"
        ).fetchall()
        digest.update(str(names).encode())
        for name, kind in names:
            if kind in "rS" and not name.startswith(("pg_", "sql_")):
                rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()  # type: ignore[arg-type]
                digest.update(repr(sorted(map(repr, rows))).encode())
        for catalogue in ("pg_largeobject_metadata", "pg_roles", "pg_database"):
            counted = connection.execute(f"SELECT count(*) FROM {catalogue}").fetchone()  # type: ignore[arg-type]
            digest.update(str(counted).encode())
    return digest.hexdigest()


@contextmanager
def unchanged(url: str) -> Iterator[None]:
    before = fingerprint(url)
    yield
    assert fingerprint(url) == before


def test_questions_are_answered_with_parameters(url: str) -> None:
    rows = run_sql(
        url, "SELECT trial FROM sweep_trials WHERE lambda > :low AND state = :state ORDER BY 1;",
        {"low": 1e-3, "state": "FAIL"},
    )  # fmt: skip
    assert (rows.columns, rows.rows) == (["trial"], [(5,)])
    assert run_sql(url, "VALUES (1, 'a%'), (2, ':x')").rows == [(1, "a%"), (2, ":x")]
    assert run_sql(url, "WITH x AS (SELECT 1 AS a) SELECT a FROM x").dicts() == [{"a": 1}]
    assert len(run_sql(url, "EXPLAIN SELECT * FROM sweep_trials")) > 0
    assert run_sql(url, "-- ; a comment\nSELECT 'x;y' AS \"a;b\" /* ; */").dicts() == [
        {"a;b": "x;y"}
    ]
    assert run_sql(url, "SELECT count(*) FROM sweep_folds WHERE score > 0").rows[0][0] > 0


ATTACKS = [
    "DELETE FROM trials", "DROP TABLE trials", "UPDATE trials SET number = 1",
    "INSERT INTO studies (study_name) VALUES ('x')", "CREATE TABLE x (a int)",
    "SELECT 1; DROP TABLE trials", "SELECT 1; COMMIT; DROP TABLE trials; --",
    "SELECT E'\\''; DROP TABLE trial_params; COMMIT; --'",
    "SELECT $$;$$; DROP TABLE trial_params; COMMIT; --",
    "WITH x AS (DELETE FROM trial_values RETURNING 1) SELECT * FROM x",
    "WITH x AS (SELECT 1) DELETE FROM trial_values",
    "WITH x AS (SELECT 1) INSERT INTO studies (study_name) SELECT 'x' FROM x",
    "EXPLAIN ANALYZE DELETE FROM trial_values", "EXPLAIN DELETE FROM trial_values",
    "EXPLAIN (ANALYZE) CREATE TABLE x AS SELECT 1",
    "ATTACH DATABASE 'stolen.db' AS x", "VACUUM INTO 'copy.db'", "VACUUM",
    "PRAGMA query_only = OFF", "PRAGMA writable_schema = 1", "PRAGMA journal_mode = DELETE",
    "SELECT * FROM pragma_query_only(0)", "SELECT * FROM pragma_user_version(7)",
    "SELECT load_extension('x')", "SELECT writefile('out', 'x')",
    "SELECT fts3_tokenizer('simple', x'00')",
    "BEGIN; DELETE FROM trials; COMMIT", "COMMIT", "SAVEPOINT x", "REINDEX", "ANALYZE",
    "SELECT * INTO x FROM trials", "SELECT * FROM trials FOR UPDATE",
    "COPY trials TO PROGRAM 'touch /tmp/pwned'", "COPY trials FROM '/etc/passwd'",
    "SELECT nextval('trials_trial_id_seq')", "SELECT setval('trials_trial_id_seq', 1)",
    "SELECT lo_create(0)", "SELECT lo_from_bytea(0, 'x')", "SELECT lo_import('/etc/hostname')",
    "SELECT pg_read_file('/etc/passwd')", "SELECT pg_ls_dir('/')",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "SELECT set_config('role', 'none', true), lo_create(0)",
    "SELECT set_config('role', 'none', true), pg_read_file('/etc/passwd')",
    "SELECT query_to_xml('DROP TABLE trials', true, true, '')",
    "SELECT query_to_xml('DELETE FROM trials RETURNING 1', true, true, '')",
    "SET TRANSACTION READ WRITE", "RESET ROLE", "CALL x()", "DO $$ BEGIN END $$",
    "SELECT pg_notify('a', 'b')", "LISTEN a", "DECLARE c CURSOR FOR SELECT 1", "EXECUTE x",
    "SELECT pg_terminate_backend(0)", "TABLE trials", "GRANT ALL ON trials TO public",
    "", ";", "--", "/*", "'", "\0", "SELECT '\0'", "(((", "EXPLAIN", "SELECT", "EXPLAIN EXPLAIN",
    "x" * 10_000, "SELECT " + "(" * 5000, "SELECT '" + "'" * 9999,
]  # fmt: skip


def test_no_statement_writes(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with unchanged(url):
        for attack in ATTACKS:
            with suppress(SweepError):
                run_sql(url, attack)
            with suppress(SweepError):
                trials(url, "ridge", where=attack)
            with suppress(SweepError):
                trials(url, "ridge", where=f"1) UNION {attack}")


WRITING = [
    a for a in ATTACKS if a.split(" ")[0] in ("DELETE", "DROP", "UPDATE", "ATTACH", "VACUUM")
]


@pytest.mark.parametrize("attack", WRITING)
def test_a_writing_statement_is_refused_in_a_sentence(url: str, attack: str) -> None:
    with pytest.raises(RequestError, match="never change the database"):
        run_sql(url, attack)


WORDS = (
    "SELECT DELETE DROP UPDATE INSERT INTO FROM WHERE TABLE trials studies sweep_trials * 1 'a' ; "
    "-- /* */ ' \" ( ) , = UNION WITH x AS RETURNING COMMIT BEGIN ATTACH VACUUM PRAGMA EXPLAIN "
    "ANALYZE $$ $a$ E'\\' :x :: % %s \\ \n CREATE VIEW SET ROLE COPY TO PROGRAM number NULL"
)
PIECES = st.sampled_from(WORDS.split(" "))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, max_size=14).map(" ".join) | st.text(max_size=60))
def test_no_mangled_statement_writes_or_shows_a_traceback(url: str, sql: str) -> None:
    with reader(url, 5.0) as ask:
        for statement in (sql, f"SELECT {sql}", f"WITH x AS (SELECT 1) {sql}", f"EXPLAIN {sql}"):
            with suppress(SweepError):
                ask(statement)
    with suppress(SweepError):
        trials(url, "ridge", where=sql)
    with Store.open(url) as store:
        assert store.counts(store.study_id("ridge"))["COMPLETE"] == 3


ENDLESS = [
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT count(*) FROM x",
    "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x WHERE n < 0",
]


@pytest.mark.parametrize("sql", ENDLESS)
def test_an_endless_query_is_stopped(url: str, sql: str) -> None:
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"stopped after 0\.3 s"):
        run_sql(url, sql, timeout=0.3)
    assert time.monotonic() - start < 5


def test_a_query_cannot_lift_its_own_time_limit(postgres_url: str) -> None:
    with Store.open(postgres_url, create=True):
        pass
    rows = "pg_sleep(n * 0.001) FROM generate_series(1, 100000) AS g(n)"
    with pytest.raises(RequestError, match="set_config could do more"):
        run_sql(postgres_url, f"SELECT set_config('statement_timeout', '0', false), {rows}")
    with pytest.raises(StorageError, match="stopped after"):
        run_sql(postgres_url, f"SELECT {rows}", timeout=1.0)


ROLE = "set_config('role', 'none', true)"
SLOT = "pg_create_physical_replication_slot('left_behind')"
HIDDEN = [
    f"SELECT {ROLE}, query_to_xml('SELECT {SLOT.replace(chr(39), chr(39) * 2)}', true, false, '')",
    f"SELECT {ROLE}, {SLOT}",
    f"SELECT {SLOT}",
    f"SELECT PG_Catalog.Set_Config('role', 'none', true), {SLOT}",
    f"SELECT pg_catalog.\"set_config\"('role', 'none', true), {SLOT}",
    "SELECT U&\"set\\005fconfig\"('role', 'none', true)",
    # What looks like a string or a comment to a careless reader, and is none to Postgres.
    f"SELECT E'\\'', {ROLE}, {SLOT}, E'\\''",
    f"SELECT 1E'\\'', {ROLE}, {SLOT}, E'\\''",
    f"SELECT 1 /* /* */ ' */ , {ROLE}, {SLOT} --'",
    f"SELECT 1 -- \r , {ROLE}, {SLOT}",
    f"SELECT 1 AS a$b$, {ROLE}, {SLOT}, 1 AS x$b$",
    f"SELECT 1 AS \u20ac$b$, {ROLE}, {SLOT}, 1 AS \u20ac$b$",
    f"SELECT 1 $1$, {ROLE}, {SLOT}, 1 $1$",
]


@pytest.mark.parametrize("attack", HIDDEN)
def test_a_superuser_cannot_step_out_of_the_reading_role(postgres_url: str, attack: str) -> None:
    """The user of the test server is a superuser; a replication slot would survive the rollback."""
    with Store.open(postgres_url, create=True):
        pass
    with pytest.raises(RequestError):
        run_sql(postgres_url, attack)
    slots = "SELECT slot_name FROM pg_replication_slots WHERE slot_name = 'left_behind'"
    assert run_sql(postgres_url, slots).rows == []


def test_names_of_refused_functions_in_strings_are_only_strings(postgres_url: str) -> None:
    with Store.open(postgres_url, create=True):
        pass
    found = run_sql(postgres_url, "SELECT 'set_config' AS a, $$ts_stat$$ AS b /* pg_notify */")
    assert found.rows == [("set_config", "ts_stat")]


@pytest.mark.parametrize("value", ["l1", None, 3])
def test_a_parameter_whose_type_nothing_tells_is_text(url: str, value: object) -> None:
    asked = "SELECT count(*) FROM sweep_trials WHERE (:k IS NULL OR regularizer = :k)"
    if value == 3 and url.startswith("postgresql"):
        asked = asked.replace("regularizer", "trial")
    everything = run_sql(url, "SELECT count(*) FROM sweep_trials").rows[0][0]
    ((n,),) = run_sql(url, asked, {"k": value}).rows
    assert n == everything if value is None else n < everything


def test_an_answer_too_large_for_memory_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.store.readonly.MAX_VALUES", 20_000)
    endless = ENDLESS[0].replace("count(*)", "n, n, n")
    with pytest.raises(RequestError, match=r"more than 20,000 values\. Add a LIMIT"):
        run_sql(url, endless)


def test_numbers_that_only_postgres_has(postgres_url: str) -> None:
    with Store.open(postgres_url, create=True):
        pass
    ((inf, nan),) = run_sql(postgres_url, "SELECT 'Infinity'::numeric, 'NaN'::numeric").rows
    assert inf == float("inf") and nan != nan
    assert run_sql(postgres_url, "/* x */ EXPLAIN SELECT 1").columns == ["QUERY PLAN"]


@pytest.mark.parametrize(
    ("sql", "params", "sentence"),
    [
        ("SELECT lamda FROM sweep_trials", {}, "Did you mean 'lambda'"),
        ("SELECT * FROM sweep_trails", {}, "The views are sweep_studies"),
        ("SELECT FROM WHERE", {}, "The SQL is refused: "),
        ("SELECT :a", {}, "asks for :a, which has no value"),
        ("SELECT 1", {"a": 1}, "'a' does not occur"),
        ("SELECT 1; SELECT 2", {}, "One statement at a time"),
        ("", {}, "The SQL is empty"),
        ("DELETE FROM trials", {}, "Only SELECT, WITH, VALUES and EXPLAIN"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    url: str, sql: str, params: dict[str, object], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence) as refused:
        run_sql(url, sql, params)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
