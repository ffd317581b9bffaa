"""Where compiled steps are kept, and what becomes of a file that is none."""

import os

import pytest
import torch

from sweep.training.lanes_compile import Compilation, cache_directory
from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_program import Program
from sweep.training.lanes_step import StepInputs
from sweep.training.member import Member

from .trials import BASE, experiment, merge

SLOTS = 4


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def compilation(study=BASE):
    exp = experiment(study)
    setting = exp.spec.setting({"learning_rate": 0.1})
    models = [LaneModel.build(exp, Member(trial, 0, setting)) for trial in range(SLOTS)]
    program = Program(exp, models[0], SLOTS)
    program.waiting.extend(models)
    program.advance()
    whole = torch.zeros(SLOTS, dtype=torch.int64)
    inputs = StepInputs(
        folds=whole,
        rows=torch.zeros(SLOTS, program.batch, dtype=torch.int32),
        n_rows=whole + program.batch,
        step=whole,
        learning_rate=torch.full((SLOTS,), 0.1, dtype=exp.dtype),
    )
    return Compilation(program.stepper.step, program.state, inputs, program.stepper.table)


def test_a_file_that_is_no_library_is_thrown_away_and_nothing_else_happens(home):
    first = compilation()
    assert first.error is None and first.result is None
    first.library.write_bytes(b"no library")
    again = compilation()
    assert again.library == first.library and not first.library.exists()
    assert again.error is None and again.result is None


def test_steps_are_kept_under_the_cache_that_is_asked_for(home):
    assert cache_directory() == home / "sweep" / "steps"
    assert (home / "sweep" / "steps").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_no_code_is_loaded_from_where_others_may_write(home, mode):
    path = cache_directory()
    os.chmod(path, mode)
    other = cache_directory()
    assert other != path and other.stat().st_mode & 0o077 == 0
    other.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "python:toy_data:Convolution"])
def test_a_step_that_fits_one_number_of_lanes_only_is_refused(home, kind):
    """Mapped over models, a convolution has a group a lane, and its compiled form so many."""
    source = "three_classes" if kind == "mlp" else "images"
    study = merge(BASE, data={"source": f"python:toy_data:{source}"}, model={"kind": kind})
    found = compilation(study)
    found.start()
    found.wait()
    if kind == "mlp":
        assert found.error is None and found.result is not None
    else:
        assert found.result is None
        assert found.error is not None and "fixes the number of lanes" in found.error
