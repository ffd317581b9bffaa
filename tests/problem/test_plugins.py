"""Objects named in a study file: found, or refused in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweep.errors import SpecError
from sweep.problem.plugins import load_object


def test_a_module_beside_the_study_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "beside_study.py").write_text("import beside_too\nanswer = beside_too.x\n")
    (tmp_path / "beside_too.py").write_text("x = 42\n")
    assert load_object("python:beside_study:answer", tmp_path) == 42


def test_a_module_beside_the_study_file_never_shadows_an_installed_one(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("array = 'mine'\n")
    (tmp_path / "json.py").write_text("loads = 'mine'\n")
    assert load_object("python:numpy:array", tmp_path) != "mine"
    assert load_object("python:json:loads", tmp_path) != "mine"


def test_two_study_folders_may_hold_different_modules_of_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same_name.py").write_text("import same_helper\nx = same_helper.x\n")
        (tmp_path / name / "same_helper.py").write_text(f"x = {name!r}\n")
    found = [load_object("python:same_name:x", tmp_path / name) for name in "abab"]
    assert found == ["a", "b", "a", "b"]
    assert sum(path.startswith(str(tmp_path)) for path in sys.path) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python:my_modell:net", ["my_modell", "Did you mean 'my_model'"]),
        ("python:my_model:nett", ["'nett'", "Did you mean 'net'", "Names there: net"]),
        ("python:raises:x", ["importing raises raised ZeroDivisionError: division by zero"]),
        ("python:leaves:x", ["SystemExit: 3"]),
        ("python:half_written:x", ["SyntaxError"]),
        ("python:needs:x", ["needs imports 'no_such_package', which is not installed"]),
        ("my_model:net", ["python:module:attribute"]),
        ("python:my_model", ["python:module:attribute"]),
        ("python:my_model.deeper:x", ["my_model.deeper"]),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(
    tmp_path: Path, name: str, words: list[str]
) -> None:
    (tmp_path / "my_model.py").write_text("net = 1\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "half_written.py").write_text("def f(:\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    with pytest.raises(SpecError) as refusal:
        load_object(name, tmp_path)
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)
