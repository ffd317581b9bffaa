"""`sweep run` says who trains and why, and a model that lanes cannot train is none the worse."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sweep.store import queries
from sweep.store.storage import Store

Command = Callable[..., tuple[int, str, str]]
STUDY: dict[str, Any] = {
    "study": "own",
    "data": {"source": "python:toy_data:three_classes"},
    "task": "classification",
    "model": {"kind": "mlp", "hidden": [6]},
    "train": {"learning_rate": {"low": 0.01, "high": 0.3}, "batch_size": 16, "epochs": 3},
    "cross_validation": {"kind": "kfold", "folds": 3},
    "sampler": "random",
    "trials": 4,
}
ALONE = "Engine: reference, one model at a time: "
WHY = {
    "LooksAtData": "model uses .item()",
    "Branches": "model branches on the data",
    "Selects": "the size of what the model computes depends on the data",
    "LeavesTorch": "model leaves torch",
    "OwnOperator": "model has an operator that cannot be batched",
    "WritesInto": "model changes a tensor of its own in place",
    "Reassigned": "it replaces its buffers, where only changes in place can be followed",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(Path(__file__).with_name("training") / "toy_data.py", tmp_path)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(STUDY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(home: Path, name: str) -> list[Any]:
    return queries.folds(f"sqlite:///{home / name}.db", "own").rows


def arguments(name: str, kind: str, *more: str) -> list[str]:
    model = f"model={{kind: 'python:toy_data:{kind}'}}"
    return ["run", "own.yaml", "--set", model, "--storage", f"sqlite:///{name}.db", *more]


def test_a_model_of_this_house_trains_in_lanes(home: Path, command: Command) -> None:
    code, out, _ = command("run", "own.yaml")
    assert code == 0 and "\nEngine: lanes, 12 slots, eager\n" in out


@pytest.mark.parametrize("kind", WHY)
def test_a_module_that_lanes_cannot_train_is_named_at_once_and_scored_as_alone(
    kind: str, home: Path, command: Command
) -> None:
    began = time.monotonic()
    code, out, err = command(*arguments("auto", kind))
    assert (code, err) == (0, "")
    assert time.monotonic() - began < 30
    lines = out.splitlines()
    notice = f"reference engine for python:toy_data:{kind}, which cannot be batched: {WHY[kind]}"
    assert notice in out and ("(toy_data.py, line " in out) == (kind != "Reassigned")
    engines = [line for line in lines if line.startswith("Engine")]
    assert engines == [f"{ALONE}{WHY[kind]}"]
    assert command(*arguments("alone", kind, "--engine", "reference", "--quiet"))[0] == 0
    assert len(scores(home, "auto")) == 12 and scores(home, "auto") == scores(home, "alone")


def test_a_buffer_that_is_changed_in_place_is_no_reason_against_lanes(
    home: Path, command: Command
) -> None:
    code, out, _ = command(*arguments("auto", "RunningMean"))
    assert code == 0 and "\nEngine: lanes, 12 slots, eager\n" in out and "Notice" not in out
    assert command(*arguments("alone", "RunningMean", "--engine", "reference", "--quiet"))[0] == 0
    for (*there, one), (*here, other) in zip(
        scores(home, "auto"), scores(home, "alone"), strict=True
    ):
        assert there == here and one == pytest.approx(other, rel=1e-4)


def test_a_module_that_crashes_in_one_member_fails_that_trial_alone(
    home: Path, command: Command
) -> None:
    """A large learning rate makes its weights large, and then it raises."""
    rates = [0.02, 50.0, 0.05, 0.1]
    changes = ["--set", "train.learning_rate={low: 0.01, high: 60.0}", "--set"]
    changes.append(f"enqueue={[{'learning_rate': rate} for rate in rates]}")
    code, _, err = command(*arguments("auto", "BreaksLate", *changes))
    assert (code, err) == (0, "")
    url = f"sqlite:///{home / 'auto'}.db"
    states = [row[0] for row in queries.trials(url, "own", columns=["state"]).rows]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    failure = queries.failure(url, "own", 1)
    assert failure is not None and failure["kind"] == "error"
    assert failure["message"] == "RuntimeError: the head is too large"


def test_a_model_too_large_for_two_slots_trains_alone(home: Path, command: Command) -> None:
    code, out, _ = command("run", "own.yaml", "--memory", "2KB")
    assert code == 0 and f"\n{ALONE}no two models fit the memory\n" in out
    assert "no two models of this size fit the memory at once" in out
    assert "4 trials, 4 complete" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(
    home: Path, command: Command
) -> None:
    assert command("run", "own.yaml", "--device", "cpu", "--quiet")[0] == 0
    before = (home / "sweep.db").read_bytes()
    again = ["replay", "own", "0", "--allow", "toy_data"]
    for asked in (["run", "own.yaml", "--fresh"], ["check", "own.yaml"], again):
        code, out, err = command(*asked, "--device", "cuda")
        assert (code, out) == (2, "")
        assert err.startswith("Error: Device cuda was asked for, but torch ")
        assert err.endswith(", or give device auto or cpu.\n") and err.count("\n") == 1
    assert (home / "sweep.db").read_bytes() == before


def test_the_device_is_stored_with_the_run(home: Path, command: Command) -> None:
    assert command("run", "own.yaml", "--device", "cpu", "--quiet")[0] == 0
    with Store.open("sqlite:///sweep.db") as store:
        (run,) = store.study_attrs(store.study_id("own"))["runs"]
    assert run["device"] == "cpu"
