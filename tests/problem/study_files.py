"""A small study file around the data under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep.problem.data import Dataset, load_data
from sweep.problem.prepare import Problem, prepare
from sweep.spec import StudySpec, load_spec


def make_spec(data: dict[str, Any] | str, **keys: Any) -> StudySpec:
    study: dict[str, Any] = {
        "study": "s",
        "data": {"source": data} if isinstance(data, str) else data,
        "task": "regression",
        "model": {"kind": "linear"},
        "train": {"learning_rate": 0.1, "dtype": "float64"},
    }
    return load_spec({**study, **keys}).spec


def load_csv(folder: Path, text: str, data: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    """The data set of a table with the given text, whose target is `y`."""
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return load_data(make_spec({"source": "t.csv", "target": "y", **(data or {})}, **keys), folder)


def prepare_csv(
    folder: Path, text: str, data: dict[str, Any] | None = None, **keys: Any
) -> Problem:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return prepare(make_spec({"source": "t.csv", "target": "y", **(data or {})}, **keys), folder)
