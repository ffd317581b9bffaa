"""The verbs that carry studies, as users meet them: files, exit codes, questions, refusals."""

from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

import sweep
from sweep.store.storage import Finished, Store, new_worker
from tests.command_lines import SWEEP
from tests.store.studies import SPACE, plain_optuna, small_study
from tests.stored_studies import digits_trials, fill

Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A database with the study `digits`, which the commands find by themselves."""
    fill(database_url)
    monkeypatch.setenv("SWEEP_STORAGE", database_url)
    monkeypatch.chdir(tmp_path)
    return database_url


def test_every_form_of_export_holds_the_same_trials(url: str, command: Sweep) -> None:
    import pandas as pd

    expected = sweep.open(url).study("digits").trials()
    for suffix in ("csv", "json", "parquet", "db"):
        code, out, err = command("export", "digits", "-o", f"out.{suffix}")
        assert (code, out, err) == (0, f"Wrote 40 trials of digits to out.{suffix}\n", "")
    copied = sweep.open("sqlite:///out.db").study("digits").trials()
    # Of the seconds the databases round half a millisecond in their own ways.
    pd.testing.assert_frame_equal(
        copied, expected[copied.columns], check_dtype=False, rtol=1e-9, atol=2e-3
    )
    parquet = pd.read_parquet("out.parquet")
    assert str(parquet["started"].dtype).startswith("datetime64") and parquet["trial"].dtype == int
    assert parquet["score"].dtype == float and parquet["lambda"].dtype == float
    numbers = ["trial", "score", "score_se", "lambda", "learning_rate", "clip_norm", "momentum"]
    for name, frame in (
        ("csv", pd.read_csv("out.csv", keep_default_na=False, na_values=[""])),
        ("json", pd.read_json("out.json")),
        ("parquet", parquet),
    ):
        assert list(frame.columns) == list(expected.columns), name
        for column in numbers:
            pd.testing.assert_series_equal(
                frame[column].astype(float), expected[column].astype(float), rtol=1e-9
            )
        for column in ("state", "regularizer", "failure_reason"):
            assert frame[column].fillna("").tolist() == expected[column].fillna("").tolist()


def test_folds_and_failures_are_exported_too(url: str, command: Sweep) -> None:
    assert command("export", "digits", "-o", "folds.csv", "--view", "folds")[0] == 0
    with Path("folds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32 * 5 and list(rows[0]) == ["study", "trial", "fold", "score"]
    assert command("export", "digits", "-o", "why.json", "--view", "failures")[0] == 0
    failures = json.loads(Path("why.json").read_text())
    assert len(failures) == 8 and {row["kind"] for row in failures} == {"divergence"}


def test_an_exported_database_is_optunas(url: str, command: Sweep) -> None:
    assert command("export", "digits", "-o", "digits.sqlite")[0] == 0
    with plain_optuna("sqlite:///digits.sqlite") as storage:
        study = optuna.load_study(study_name="digits", storage=storage)
        assert len(study.trials) == 40 and study.best_trial.number == 26
        assert study.user_attrs["data"]["rows"] == 1797


def test_an_infinite_score_is_null_in_json(url: str, command: Sweep) -> None:
    with plain_optuna(url) as storage:
        study = optuna.create_study(storage=storage, study_name="infinite")
        study.add_trial(optuna.trial.create_trial(value=float("inf")))
        study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"score_se": float("nan")}))
    code, out, _ = command("trials", "infinite", "--format", "json")
    strict = json.loads(out, parse_constant=pytest.fail)
    assert code == 0 and [row["score"] for row in strict] == [None, 1.0]
    assert [row["score_se"] for row in strict] == [None, None]
    code, out, _ = command("sql", "SELECT score FROM sweep_trials WHERE score > :least",
                           "--param", "least=1e300", "--format", "json")  # fmt: skip
    assert json.loads(out, parse_constant=pytest.fail) == [{"score": None}]
    assert command("export", "infinite", "-o", "infinite.json")[0] == 0
    text = Path("infinite.json").read_text()
    assert [row["score"] for row in json.loads(text, parse_constant=pytest.fail)] == [None, 1.0]


@pytest.mark.parametrize(
    ("output", "more", "said"),
    [
        ("trials.xlsx", [], "trials.xlsx has no suffix that says how to write it"),
        ("trials", [], "Give one of: .csv, .json, .parquet, .sqlite, .sqlite3, .db."),
        ("none/trials.csv", [], "The folder none does not exist."),
        ("folder.db", [], "folder.db is a folder"),
        ("there.csv", [], "there.csv is there already. Give another file, or add --replace."),
        ("all.db", ["--view", "folds"], "A database holds every view"),
    ],
)
def test_what_cannot_be_exported(
    url: str, command: Sweep, output: str, more: list[str], said: str
) -> None:
    Path("there.csv").write_text("mine")
    Path("folder.db").mkdir()
    code, out, err = command("export", "digits", "-o", output, *more)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    assert Path("there.csv").read_text() == "mine"
    assert command("export", "digits", "-o", "there.csv", "--replace")[0] == 0
    assert Path("there.csv").read_text().startswith("study,trial,state,score")
    code, _, err = command("export", "digit", "-o", "x.csv")
    assert code == 2 and "Did you mean 'digits'?" in err and not Path("x.csv").exists()
    assert not list(Path().glob(".*part"))


@pytest.mark.parametrize("name", ["self.db", "link.db"])
def test_an_export_never_replaces_the_database_that_it_reads(
    name: str, command: Sweep, tmp_path: Path
) -> None:
    fill(f"sqlite:///{tmp_path / 'self.db'}", "digits", digits_trials())
    fill(f"sqlite:///{tmp_path / 'self.db'}", "other", digits_trials())
    (tmp_path / "link.db").symlink_to(tmp_path / "self.db")
    storage = ("--storage", str(tmp_path / "self.db"))
    code, _, err = command("export", "digits", "-o", str(tmp_path / name), "--replace", *storage)
    assert code == 2 and "is the database itself" in err
    assert len(json.loads(command("studies", "--format", "json", *storage)[1])) == 2


def test_an_export_does_not_replace_a_database_in_use(
    url: str, command: Sweep, tmp_path: Path
) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'used.db'}", create=True) as store:
        small_study(store)
        target = str(tmp_path / "used.db")
        code, _, err = command("export", "digits", "-o", target, "--replace", "--storage", url)
        assert code == 2 and "in use" in err


def test_studies_travel_there_and_back(url: str, command: Sweep, tmp_path: Path) -> None:
    assert command("export", "digits", "-o", "digits.db")[0] == 0
    code, _, err = command("import", "digits.db")
    assert code == 2 and "There is a study 'digits'" in err and "--name NAME" in err
    code, out, _ = command("import", "digits.db", "--name", "back")
    assert (code, out) == (0, "Imported digits as back: 40 trials\n")
    database = sweep.open(url)
    back, digits = database.study("back").trials(), database.study("digits").trials()
    assert back.drop(columns="study").equals(digits.drop(columns="study"))
    assert database.study("back").best == database.study("digits").best
    # Into a database that is not there yet.
    code, out, _ = command("import", url, "--storage", "sqlite:///new.db")
    assert code == 0 and out.splitlines() == [
        "Imported digits: 40 trials",
        "Imported back: 40 trials",
    ]


def test_a_plain_optuna_study_is_imported(url: str, command: Sweep) -> None:
    with plain_optuna("sqlite:///plain.db") as storage:
        study = optuna.create_study(storage=storage, study_name="plain")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        optuna.create_study(storage=storage, study_name="other")
        tried = [trial.params["x"] for trial in study.trials]
    code, _, err = command("import", "plain.db", "--name", "mine")
    assert code == 2 and "Say which of those in sqlite:///plain.db: 'plain', 'other'." in err
    code, out, _ = command("import", "plain.db", "plain", "--name", "mine")
    assert (code, out) == (0, "Imported plain as mine: 2 trials\n")
    found = sweep.open(url).study("mine").trials()
    assert found["x"].tolist() == tried
    code, out, err = command("import", "none.db")
    assert code == 2 and "No study database at sqlite:///none.db" in err
    assert not Path("none.db").exists()


def test_passwords_of_a_source_are_not_printed(url: str, command: Sweep) -> None:
    address = "postgresql://me:hunter2@127.0.0.1:1/none?connect_timeout=1"
    code, out, err = command("import", address)
    assert code == 1 and "hunter2" not in out + err and "cannot be reached" in err


def test_deleting_needs_a_yes(url: str, command: Sweep) -> None:
    code, out, err = command("delete", "digits")
    assert code == 2 and "add --yes. Nothing is deleted." in err
    assert len(sweep.open(url).studies()) == 1
    code, out, _ = command("delete", "digits", "--yes")
    assert (code, out) == (0, "Deleted digits with its 40 trials\n")
    assert len(sweep.open(url).studies()) == 0
    code, _, err = command("delete", "digits", "--yes")
    assert code == 2 and "No study 'digits'" in err


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 1, 1), ("", 1, 1)])
def test_on_a_terminal_it_asks(answer: str, code: int, left: int, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [SWEEP, "delete", "digits", "--storage", url],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        out = process.communicate(timeout=30)[0].decode()
    os.close(ours)
    assert process.returncode == code, out
    assert "Delete digits with its 40 trials from sqlite:///" in out and "[y/N]" in out
    assert len(sweep.open(url).studies()) == left


def test_a_running_study_is_not_deleted_unless_forced(url: str, command: Sweep) -> None:
    with Store.open(url) as store:
        study = small_study(store, n=3)
        worker = new_worker()
        new = [({"lambda": 0.1, "regularizer": "l1"}, SPACE)]
        (trial,) = store.create_trials(study, new, total=4, worker=worker)
        for verb in (["delete", "ridge", "--yes"], ["rename", "ridge", "x"]):
            code, _, err = command(*verb)
            assert code == 2 and "1 trial is in training by" in err
        assert "--force" in command("delete", "ridge", "--yes")[2]
        assert command("delete", "ridge", "--yes", "--force")[0] == 0
        assert store.finish_trials([Finished(trial, TrialState.COMPLETE, 1.0)], worker) == [False]


def test_renamed(url: str, command: Sweep) -> None:
    assert command("rename", "digits", "a study's name") == (
        0,
        "Renamed digits to a study's name\n",
        "",
    )
    assert list(sweep.open(url).studies()["study"]) == ["a study's name"]
    assert command("rename", "digits", "x")[0] == 2


def test_merged(url: str, command: Sweep) -> None:
    fill(url, "more", digits_trials()[:7])
    code, out, _ = command("merge", "digits", "more", "--into", "all")
    assert code == 0 and out.splitlines() == [
        "digits: 40 trials, numbered from 0",
        "more: 7 trials, numbered from 40",
        "Merged into all: 47 trials",
    ]
    database: Any = sweep.open(url)
    assert database.study("all").trials()["trial"].tolist() == list(range(47))
    code, _, err = command("merge", "digits", "--into", "one")
    assert code == 2 and "two or more" in err
    small = {"spec": {"study": "x", "seed": 5}, "data": {}}
    fill(url, "unlike", digits_trials()[:3], attrs=small)
    code, _, err = command("merge", "digits", "unlike", "--into", "x")
    assert code == 2 and "their scores do not compare" in err
    assert sa.make_url(url).password is None or "s3cret" not in err


@pytest.mark.parametrize(
    ("given", "value", "kind"),
    [
        ("5", 5, "integer"),
        ("-0.5", -0.5, "real"),
        ("1e-3", 1e-3, "real"),
        ("null", None, "null"),
        ('"5"', "5", "text"),
        ("007", "007", "text"),
        ("nan", "nan", "text"),
        ("inf", "inf", "text"),
        ("1e999", "1e999", "text"),
        ("1_000", "1_000", "text"),
        ("a=b", "a=b", "text"),
        ("", "", "text"),
        ('"', '"', "text"),
        ("'; DROP TABLE trials --", "'; DROP TABLE trials --", "text"),
    ],
)
def test_parameters_have_types(
    given: str, value: object, kind: str, command: Sweep, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url, trials=[])
    query = "SELECT :x AS x, typeof(:x) AS kind"
    code, out, err = command(
        "sql", query, "--param", f"x={given}", "--storage", url, "--format", "json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == [{"x": value, "kind": kind}]


def test_parameters_compare_with_columns(url: str, command: Sweep) -> None:
    def count(condition: str, *params: str) -> int:
        given = [word for param in params for word in ("--param", param)]
        query = f"SELECT count(*) AS n FROM sweep_trials WHERE {condition}"
        code, out, err = command("sql", query, *given, "--format", "json")
        assert code == 0, err
        return int(json.loads(out)[0]["n"])

    fill(url, "42", digits_trials()[:7])
    assert count("study = :s", 's="42"') == 7
    assert count("study = :s AND trial < :n", "s=digits", "n=5") == 5
    assert count("lambda > :least AND study = :s", "least=1e-3", "s=digits") == sum(
        trial["params"]["lambda"] > 1e-3 for trial in digits_trials()
    )
    assert command("sql", "SELECT :x", "--param", "x")[0] == 2


def test_what_a_terminal_would_obey_is_not_printed(command: Sweep, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url, "clear\x1b[2Jscreen", trials=[])
    code, out, _ = command("studies", "--storage", url)
    assert code == 0 and "\x1b" not in out and "clear" in out


def test_a_study_without_trials_is_exported_as_columns_alone(
    command: Sweep, tmp_path: Path
) -> None:
    import pandas as pd

    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url, "empty", trials=[])
    for suffix in ("csv", "parquet", "json", "db"):
        target = tmp_path / f"out.{suffix}"
        code, out, err = command("export", "empty", "-o", str(target), "--storage", url)
        assert (code, err) == (0, "") and "0 trials" in out, suffix
    assert json.loads((tmp_path / "out.json").read_text()) == []
    assert list(pd.read_parquet(tmp_path / "out.parquet").columns) == list(
        pd.read_csv(tmp_path / "out.csv").columns
    )


def test_python_reads_the_same_rows_without_torch(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url)
    code = (
        "import sys, sweep\n"
        f"database = sweep.open({url!r})\n"
        "assert database.studies()['study'].tolist() == ['digits']\n"
        "study = database.study('digits')\n"
        "assert len(study.trials()) == 40 and len(study.folds()) == 160\n"
        "failures = study.failures()\n"
        "assert len(failures) == 8 and set(failures['kind']) == {'divergence'}\n"
        "assert {'reason', 'fold', 'step', 'layer', 'message', 'parameters'} <= set(failures)\n"
        "assert not {'torch', 'sklearn', 'optuna'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
