"""What is stored of a study says how it was made, and continuing it on anything else is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sweep.errors import RequestError, StudyChangedError
from sweep.search.environment import PACKAGES, git_state
from sweep.search.loop import run_study
from sweep.spec import load_spec
from sweep.store.storage import Store

STUDY = """\
# Which penalty for a small table?
study: small
data: {source: table.csv, target: y}
task: regression
model: {kind: linear}
regularizer: l2
lambda: {low: 1e-3, high: 1.0, log: true}
train: {learning_rate: 0.1, epochs: 2}
cross_validation: {kind: kfold, folds: 3}
sampler: random
trials: 1
"""


def write_table(folder: Path, n: int = 12, factor: float = 1.0) -> None:
    lines = ["a,b,y", *(f"{i},{i * i % 5},{factor * (i % 4)}" for i in range(n))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(STUDY, "utf-8")
    write_table(tmp_path)
    return tmp_path


def run(folder: Path, url: str, **options: Any) -> dict[str, Any]:
    """Runs the study on one machine; its stored attributes."""
    file = load_spec(folder / "small.yaml", options.pop("overrides", ()))
    ended = run_study(file, url, engine="reference", **options)
    with Store.open(url) as store:
        return store.study_attrs(store.study_id(ended.study))


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_study_says_how_it_was_made(folder: Path, database_url: str) -> None:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    attrs = run(folder, database_url)
    assert attrs["file"] == STUDY
    assert attrs["spec"]["lambda"]["low"] == 0.001 and attrs["spec"]["lambda"]["log"] is True
    assert attrs["spec"]["train"]["optimizer"] == "sgd", "defaults are written out"
    assert len(attrs["data"]["sha256"]) == 64 and attrs["data"]["rows"] == 12
    assert attrs["data"]["features"] == [2]
    assert len(set(attrs["data"]["folds"])) == 3
    (first,) = attrs["runs"]
    assert set(first["versions"]) == {*PACKAGES, "python"} and first["versions"]["torch"]
    assert first["git"] == {"commit": git(folder, "rev-parse", "HEAD"), "dirty": False}
    assert first["device"] == "cpu" and "reference" in first["engine"] and first["host"]
    # Every run adds to it.
    write_table(folder)
    (folder / "small.yaml").write_text(STUDY + "# a word more\n", "utf-8")
    attrs = run(folder, database_url, trials=2)
    assert len(attrs["runs"]) == 2 and attrs["runs"][0] == first
    assert attrs["runs"][1]["git"] == {"commit": first["git"]["commit"], "dirty": True}
    assert attrs["file"] == STUDY


def test_without_a_repository_there_is_no_commit(folder: Path) -> None:
    assert git_state(folder) is None
    git(folder, "init", "-q")
    assert git_state(folder) is None, "nothing is committed yet"
    assert git_state(folder / "none") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 15}, r"rows: 12 -> 15"),
        ({"factor": 2.0}, r"sha256: [0-9a-f]+\.\.\. -> [0-9a-f]+"),
    ],
    ids=["another row count", "another value"],
)
def test_other_data_are_refused_with_the_difference(
    folder: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    before = run(folder, url)
    write_table(folder, **change)
    with pytest.raises(StudyChangedError, match=said) as refusal:
        run(folder, url, trials=2)
    assert "other data" in str(refusal.value) and "--fresh" in str(refusal.value)
    with Store.open(url) as store:
        study = store.study_id("small")
        assert store.study_attrs(study) == before and sum(store.counts(study).values()) == 1
    attrs = run(folder, url, fresh=True)
    assert attrs["data"] != before["data"]


def test_other_folds_are_refused_with_the_difference(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    run(folder, url)
    with pytest.raises(StudyChangedError, match=r"cross_validation\.seed: nothing -> 1"):
        run(folder, url, overrides=["cross_validation.seed=1"])
    with pytest.raises(StudyChangedError, match=r"train\.epochs: 2 -> 3.*--fresh"):
        run(folder, url, overrides=["train.epochs=3"])


def test_a_study_of_plain_optuna_is_not_continued(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    with Store.open(url, create=True) as store:
        store.create_study("small", "minimize", {})
    with pytest.raises(RequestError, match="not made by sweep"):
        run(folder, url)
