"""One function a question, on SQLite and on Postgres."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution

from sweep.errors import RequestError, StorageError
from sweep.store import queries
from sweep.store.connection import shown, storage_url
from sweep.store.storage import Store
from tests.store.studies import FAILURE, plain_optuna, small_study


@pytest.fixture
def url(database_url: str) -> str:
    with Store.open(database_url, create=True) as store:
        small_study(store)
        small_study(store, "other", 3)
    return database_url


def numbers(rows: queries.Rows) -> list[int]:
    return [row["trial"] for row in rows.dicts()]


def test_studies_are_listed_with_their_counts(url: str) -> None:
    first, second = queries.studies(url).dicts()
    assert (first["study"], first["trials"], first["best_score"]) == ("ridge", 9, 0.0)
    assert (second["study"], second["complete"], second["failed"]) == ("other", 1, 1)


def test_trials_show_the_columns_of_their_own_study(url: str) -> None:
    with Store.open(url) as store:
        store.create_study("third", "minimize", {"knobs": {"fixed": {"dropout": 0.1}}})
    rows = queries.trials(url, "ridge")
    assert rows.columns == [
        "study", "trial", "state", "score", "score_se", "lambda", "regularizer", "momentum",
        "failure_kind", "failure_reason", "started", "seconds",
    ]  # fmt: skip
    assert numbers(rows) == list(range(9))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("state = 'FAIL' and lambda > 1e-4", [2, 5]),
        ("regularizer IN ('none') OR trial = 1", [0, 1, 3, 6]),
        ("score BETWEEN 0.5 AND 1 -- a comment", [3]),
        ("regularizer LIKE '%2%'", [2, 5, 8]),
        ("momentum = 0.9 AND 1=1", list(range(9))),
        ("""state = ';' OR "state" = ':x' or message_is_no_column IS NULL""", None),
    ],
)
def test_where_is_any_condition_over_the_columns(
    url: str, where: str, expected: list[int] | None
) -> None:
    if expected is None:
        with pytest.raises(RequestError):
            queries.trials(url, "ridge", where=where)
    else:
        assert numbers(queries.trials(url, "ridge", where=where)) == expected


@pytest.mark.parametrize("where", ["", "1) OR (1=1", "1; DROP TABLE trials", "'a", "x = (1", "/*"])
def test_a_condition_that_is_no_expression_is_refused(url: str, where: str) -> None:
    with pytest.raises(RequestError, match=r"not one SQL expression|is refused"):
        queries.trials(url, "ridge", where=where)


def test_sorting_and_limits(url: str) -> None:
    assert numbers(queries.trials(url, "ridge", sort="-score", limit=4)) == [6, 3, 0, 1]
    assert numbers(queries.trials(url, "ridge", sort="score", limit=2)) == [0, 3]
    rows = queries.trials(url, "ridge", columns=["lambda", "trial"], limit=1)
    assert (rows.columns, rows.rows) == (["lambda", "trial"], [(0.1, 0)])
    assert len(queries.trials(url, "ridge", limit=0)) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"columns": ["lamda"]},
        {"sort": "lamda"},
        {"where": "lamda > 1"},
        {"where": '"lamda" > 1'},
    ],
)
def test_an_unknown_column_is_named_with_the_nearest(
    url: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(RequestError, match=r"No column 'lamda'.*Did you mean 'lambda'\?.*score"):
        queries.trials(url, "ridge", **arguments)  # type: ignore[arg-type]


def test_best_follows_the_direction(url: str) -> None:
    assert numbers(queries.best(url, "ridge", 2)) == [0, 3]
    with Store.open(url) as store:
        storage = store.optuna_storage()
        study = optuna.create_study(study_name="up", storage=storage, direction="maximize")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
        best = [study.best_trial.number]
    assert numbers(queries.best(url, "up")) == best


def test_folds_diverged_and_failures(url: str) -> None:
    assert [r["score"] for r in queries.folds(url, "ridge", 3).dicts()] == [0.75, 0.75]
    assert len(queries.folds(url, "ridge")) == 12
    assert numbers(queries.diverged(url, "ridge")) == [2, 5, 8]
    (one,) = queries.diverged(url, "ridge", 5).dicts()
    assert (one["fold"], one["layer"], one["grad_norm"]) == (3, "0.weight", 1e30)
    assert queries.failure(url, "ridge", 5) == FAILURE
    assert queries.failure(url, "ridge", 4) is None
    assert queries.failures_by_reason(url, "ridge").dicts() == [
        {"kind": "divergence", "reason": "nonfinite_loss", "trials": 3, "first_trial": 2}
    ]


def test_unknown_studies_and_trials_are_refused_with_what_exists(url: str) -> None:
    for study in ("ridg", "a\0b", "'; DROP TABLE trials; --"):
        with pytest.raises(RequestError, match="Studies there: 'ridge', 'other'"):
            queries.trials(url, study)
    with pytest.raises(RequestError, match=r"has no trial 9\. Its trials are 0 to 8"):
        queries.diverged(url, "ridge", 9)


def test_a_study_shows_its_own_columns_whatever_others_call_theirs(url: str) -> None:
    """Parameters named like a column of the view, or alike but for their case, have other names."""
    before = queries.trials(url, "ridge").columns
    space = {name: FloatDistribution(0, 1) for name in ("state", "x", "X")}
    with plain_optuna(url) as storage:
        study = optuna.create_study(storage=storage, study_name="odd")
        params = dict.fromkeys(space, 0.5)
        study.add_trial(optuna.trial.create_trial(value=1, params=params, distributions=space))
    assert queries.trials(url, "ridge").columns == before
    odd = queries.trials(url, "odd")
    assert {"params.state", "X", "params.x"} <= set(odd.columns)
    assert not {"x", "lambda"} & set(odd.columns)


def test_a_new_study_of_plain_optuna_is_seen_at_once(url: str) -> None:
    with Store.open(url) as store:
        study = optuna.create_study(study_name="plain", storage=store.optuna_storage())
        study.optimize(lambda trial: trial.suggest_float("width", 2, 3), n_trials=2)
    rows = queries.trials(url, "plain", where="width > 1")
    assert "width" in rows.columns and len(rows) == 2


def test_a_database_of_plain_optuna_is_read_as_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'plain.db'}"
    storage = optuna.storages.RDBStorage(url)
    study = optuna.create_study(study_name="plain", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    storage.engine.dispose()
    assert len(queries.trials(url, "plain")) == 3


def test_questions_import_no_heavy_library() -> None:
    code = (
        "import sys, sweep.store.queries; "
        "print([m for m in ('torch', 'sklearn', 'pandas', 'optuna', 'alembic', 'psycopg') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs.db", "sqlite:///runs.db"),
        ("/tmp/a b.db", "sqlite:////tmp/a b.db"),
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        (
            "postgresql://u:p%40@h/d?sslmode=require",
            "postgresql+psycopg://u:p%40@h/d?sslmode=require",
        ),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg://h/d"),
    ],
)
def test_addresses_have_one_form(given: str, expected: str) -> None:
    assert storage_url(given) == expected
    assert storage_url(expected) == expected


def test_an_address_without_its_slashes_is_no_file_and_not_repeated() -> None:
    with pytest.raises(RequestError, match="lacks the //") as error:
        storage_url("postgresql:me:s3cret@h/d")
    assert "s3cret" not in str(error.value)


def test_the_address_comes_from_the_environment_else_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SWEEP_STORAGE", raising=False)
    assert storage_url(None) == "sqlite:///sweep.db"
    monkeypatch.setenv("SWEEP_STORAGE", "postgres://h/d")
    assert storage_url(None) == "postgresql+psycopg://h/d"


@pytest.mark.parametrize(
    "given", ["mysql://h/d", "sqlite://", "sqlite:///:memory:", "redis://s3cret@x"]
)
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(RequestError) as refused:
        storage_url(given)
    assert "s3cret" not in str(refused.value)


def test_passwords_are_never_shown() -> None:
    url = storage_url("postgres://me:s3cret@127.0.0.1:1/d?sslpassword=s3cret&password=s3cret")
    assert "s3cret" not in shown(url)
    with pytest.raises(StorageError, match="cannot be reached") as refused:
        Store.open(url)
    assert "s3cret" not in str(refused.value)


def test_a_postgres_schema_of_its_own_holds_everything(postgres_url: str) -> None:
    url = f"{postgres_url}?schema=apart"
    with Store.open(url, create=True) as store:
        small_study(store)
        assert len(store.optuna_storage().get_all_studies()) == 1
    assert len(queries.trials(url, "ridge")) == 9
    with pytest.raises(RequestError, match="No study database"):
        queries.studies(postgres_url)
    with pytest.raises(RequestError, match="plain lower-case name"):
        storage_url(f"{postgres_url}?schema=a;b")


def test_the_schema_of_the_users_name_is_found(postgres_url: str) -> None:
    with Store.open(f"{postgres_url}?schema=sweep", create=True) as store:
        small_study(store)
    assert len(queries.trials(postgres_url, "ridge")) == 9
