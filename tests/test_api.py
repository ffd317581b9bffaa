"""The Python interface says what the command line says, from the same database."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sweep
from tests.stored_studies import fill

STUDY: dict[str, Any] = {
    "study": "api",
    "data": {"source": "sklearn:diabetes", "standardize_target": "fold"},
    "task": "regression",
    "model": {"kind": "linear"},
    "regularizer": {"choices": ["none", "l2"]},
    "lambda": {"low": 1e-3, "high": 1.0, "log": True},
    "train": {"learning_rate": 0.1, "epochs": 5},
    "sampler": "random",
    "trials": 3,
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> sweep.Result:
    url = f"sqlite:///{tmp_path_factory.mktemp('api') / 'sweep.db'}"
    return sweep.run(STUDY, storage=url)


def test_a_mapping_is_run(result: sweep.Result) -> None:
    assert result.study == "api" and result.stopped_by is None
    trials = result.trials()
    assert list(trials["trial"]) == [0, 1, 2]
    assert set(trials["state"]) == {"COMPLETE"}
    assert {"regularizer", "lambda", "learning_rate", "score", "score_se"} <= set(trials.columns)


def test_best_is_the_mean_of_its_fold_scores(result: sweep.Result) -> None:
    best = result.best
    assert best is not None and len(best.fold_scores) == 5
    assert best.score == pytest.approx(statistics.fmean(best.fold_scores))
    assert best.score_se == pytest.approx(statistics.stdev(best.fold_scores) / math.sqrt(5))
    assert best.score == pytest.approx(result.trials()["score"].min())
    assert best.params["regularizer"] in ("none", "l2")
    folds = result.folds(best.number)
    assert list(folds["score"]) == pytest.approx(best.fold_scores)


def test_a_result_shows_what_matters(result: sweep.Result) -> None:
    text = repr(result)
    assert "'api'" in text and "3 of 3 trials complete" in text and "mse" in text


def test_running_again_continues(result: sweep.Result) -> None:
    again = sweep.run(STUDY, storage=result.url, trials=4)
    assert len(again.trials()) == 4
    assert list(again.trials(where="trial < 3")["score"]) == list(
        result.trials(where="trial < 3")["score"]
    )


def test_overrides_and_refusals(result: sweep.Result) -> None:
    with pytest.raises(sweep.StudyChangedError, match=r"train\.epochs"):
        sweep.run(STUDY, storage=result.url, overrides=["train.epochs=6"])
    with pytest.raises(sweep.SpecError, match="lamda"):
        sweep.run({**STUDY, "lamda": 1}, storage=result.url)
    with pytest.raises(sweep.RequestError, match="trials is 0"):
        sweep.run(STUDY, storage=result.url, trials=0)
    with pytest.raises(sweep.RequestError, match="auto, lanes, reference"):
        sweep.run(STUDY, storage=result.url, engine="ray")
    with pytest.raises(sweep.RequestError, match="No device 'tpu'"):
        sweep.run(STUDY, storage=result.url, device="tpu")


def test_a_database_is_opened_and_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'filled.db'}"
    fill(url)
    database = sweep.open(url)
    assert list(database.studies()["study"]) == ["digits"]
    study = database.study("digits")
    assert len(study.trials()) == 40
    assert len(study.trials(where="state = 'FAIL'")) == len(study.diverged()) == 8
    assert study.best is not None and study.best.number == 26
    assert len(study.folds()) == 32 * 5
    count = database.sql("SELECT count(*) AS n FROM sweep_trials WHERE study = :s", s="digits")
    assert count["n"][0] == 40
    with pytest.raises(sweep.RequestError, match="No study 'digit'"):
        database.study("digit")


def test_there_must_be_a_database(tmp_path: Path) -> None:
    with pytest.raises(sweep.RequestError, match="No study database"):
        sweep.open(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_never_shown() -> None:
    assert "secret" not in repr(sweep.Database("postgresql+psycopg://me:secret@db/x"))
    assert "secret" not in repr(sweep.Study("a", "postgresql+psycopg://me:secret@db/x"))


def test_asking_does_not_import_torch_or_scikit_learn(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'filled.db'}"
    fill(url)
    code = (
        "import sys, sweep\n"
        f"study = sweep.open({url!r}).study('digits')\n"
        "study.best, study.trials(), study.diverged()\n"
        "assert not {'torch', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
