"""`sweep path` and `sweep cures` as users meet them: text, forms, files, refusals."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

import sweep
from sweep.store.storage import Store
from tests.stored_studies import ATTRS, complete, digits_trials, diverged, fill
from tests.test_layers import imported_by

Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    database_url: str,
    command: Sweep,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Sweep:
    """The command, on a database with the study `digits`."""
    fill(database_url)
    monkeypatch.setenv("SWEEP_STORAGE", database_url)
    monkeypatch.chdir(tmp_path)
    return command


@pytest.mark.parametrize("verb", [["path"], ["path", "--map"], ["cures"]], ids=" ".join)
def test_every_form_says_the_same(verb: list[str], command: Sweep) -> None:
    code, text, _ = command(*verb, "digits", "--format", "csv")
    header, *rows = csv.reader(io.StringIO(text))
    assert code == 0 and len(rows) >= 5
    found = json.loads(command(*verb, "digits", "--format", "json")[1])
    objects = found["cures"] if verb == ["cures"] else found
    assert all(list(each) == header for each in objects)
    for row, each in zip(rows, objects, strict=True):
        assert row == ["" if value is None else str(value) for value in each.values()]
    study = sweep.open().study("digits")
    frame = {"path": study.path, "path --map": study.stability_map}.get(" ".join(verb))
    if frame is not None:
        assert list(frame().columns) == header and len(frame()) == len(rows)
    else:
        assert [effect.cure for effect in study.cures().effects] == [row[0] for row in rows]


def test_the_path_ends_with_each_regularizers_choice(command: Sweep) -> None:
    code, out, err = command("path", "digits")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["regularizer", "lambda", "score"] and len(lines) == 1 + 40 + 4
    assert lines[-3].startswith("l2: lambda.min 0.000562 (log_loss 0.09971 ± 0.008, trial 26)")
    assert lines[-1].startswith("none: best (log_loss ")


def test_the_map_in_text(command: Sweep) -> None:
    code, out, err = command("path", "digits", "--map")
    assert (code, err) == (0, "")
    for words in (
        "none, no clipping: 2 of 7 trials diverged",
        "l2, clip_norm 1: ",
        "100% of 2",
        "Columns: learning_rate",
        "No analytic bound: a bound is known for linear models",
    ):
        assert words in out


def test_cures_are_compared_in_words(command: Sweep) -> None:
    code, out, err = command("cures", "digits")
    assert (code, err) == (0, "")
    assert "regularizer + clip_norm  3 of 13" in out
    assert "No clear difference in stability from none: l1, l2, clip_norm" in out
    assert "l2 scores better than none: by log_loss 0.037" in out
    assert "weighted as by Mantel and Haenszel" in out


@pytest.mark.parametrize("drawn", [[], ["--map"]], ids=["path", "map"])
def test_a_figure_is_written_once(drawn: list[str], command: Sweep) -> None:
    code, out, err = command("path", "digits", *drawn, "-o", "figure.html")
    assert (code, out, err) == (0, "Wrote figure.html\n", "")
    page = Path("figure.html").read_text("utf-8")
    assert "<title>digits: " in page and 'content="light dark"' in page
    # Nothing is fetched from anywhere: the library is in the page.
    assert "<script src=" not in page and "Plotly.newPlot" in page
    assert command("path", "digits", *drawn, "-o", "figure.html")[0] == 2
    assert command("path", "digits", *drawn, "-o", "figure.html", "--replace")[0] == 0
    assert command("path", "digits", *drawn, "-o", "figure.json")[0] == 0
    assert json.loads(Path("figure.json").read_text("utf-8"))["data"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["path", "digit"], "No study 'digit'"),
        (["cures", "digit"], "No study 'digit'"),
        (["path", "digits", "-o", "figure.png"], "Give one of: .html, .json"),
        (["path", "digits", "-o", "nowhere/figure.html"], "folder nowhere does not exist"),
        (["path", "digits", "-o", "."], "has no suffix"),
        (["path", "empty", "-o", "figure.html"], "nothing to draw"),
        (["path", "empty", "--map", "-o", "figure.html"], "nothing to draw"),
        (["path", "fixed", "--map"], "All trials of 'fixed' have learning_rate 0.2"),
        (["path", "multi"], "2 objectives"),
        (["cures", "multi"], "2 objectives"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_a_sentence(
    arguments: list[str], words: str, command: Sweep, database_url: str
) -> None:
    fill(database_url, "empty", [])
    knobs = {"fixed": {"regularizer": "l2", "lambda": 0.1, "learning_rate": 0.2}, "varied": []}
    fill(database_url, "fixed", [complete({}, [1.0, 2.0])], attrs={**ATTRS, "knobs": knobs})
    with Store.open(database_url) as store:
        storage = store.optuna_storage()
        optuna.create_study(storage=storage, study_name="multi", directions=["minimize"] * 2)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1
    assert not list(Path().glob("figure*"))


def test_nothing_yet_and_only_failures_are_no_error(command: Sweep, database_url: str) -> None:
    params = digits_trials()[0]["params"]
    error = diverged(params)
    error["attrs"]["failure"]["kind"] = "error"
    fill(database_url, "empty", [])
    fill(database_url, "errors", [error] * 2)
    fill(database_url, "exploded", [diverged(params)])
    for verb in (["path"], ["path", "--map"], ["cures"]):
        assert command(*verb, "empty") == (0, "", "No trial has finished yet.\n")
        assert command(*verb, "empty", "--format", "json")[0] == 0
        assert command(*verb, "exploded")[0] == 0
    assert "Nothing to map: 2 trials" in command("path", "errors", "--map")[2]
    assert "2 trials failed, none diverged" in command("cures", "errors")[2]
    assert "no trial completed, of 2" in command("path", "errors")[1]


@pytest.mark.parametrize("verb", [["path"], ["path", "--map"], ["cures"]], ids=" ".join)
def test_neither_torch_nor_scikit_learn_is_waited_for(verb: list[str], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url)
    more = [] if verb == ["cures"] else ["-o", str(tmp_path / "figure.html")]
    code = f"from sweep.cli import main\nassert main([*{verb!r}, 'digits', '--storage', {url!r}"
    assert imported_by(f"{code}]) == 0", tmp_path) == set()
    assert imported_by(f"{code}, *{more!r}]) == 0", tmp_path) == set()
