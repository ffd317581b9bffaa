"""Large data are kept once, and every fold still sees the same numbers, to the last bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sweep.problem.data import load_data
from sweep.problem.prepare import prepare
from sweep.problem.scaling import ScaledRows
from sweep.training.batches import FoldTable
from sweep.training.experiment import Experiment
from tests.problem.study_files import make_spec
from tests.training.test_engines_agree import MODELS, assert_agree
from tests.training.trials import BASE, merge

RNG = np.random.default_rng(0)


def columns(dtype):
    """A normal column, a large and a tiny one, one that is constant in a fold, whole numbers."""
    x = RNG.normal(size=(90, 5)) * [1, 1e6, 1e-5, 1, 1] + [0, 3, 1, 0, 0]
    x[:, 3] = np.arange(90) == 7
    x[:, 4] = RNG.integers(-50, 50, 90)
    return x.astype(dtype)


SOURCES = {
    "float32": columns(np.float32),
    "float64": columns(np.float64),
    "images": RNG.normal(size=(90, 3, 4, 4)) * np.array([1, 255, 1e-3])[:, None, None],
    "sequences": (RNG.normal(size=(90, 6, 2)) + np.array([5, 0])).astype(np.float32),
    "bytes": RNG.integers(0, 255, (90, 1, 4, 4)).astype(np.uint8),
}
KINDS = {"images": "cnn", "sequences": "rnn", "bytes": "cnn"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", SOURCES)
def test_one_copy_gives_the_numbers_of_a_version_a_fold(source, dtype, tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", X=SOURCES[source], y=RNG.normal(size=90))
    spec = make_spec(
        "d.npz", model={"kind": KINDS.get(source, "linear")},
        train={"learning_rate": 0.1, "dtype": dtype}, cross_validation={"folds": 3},
    )  # fmt: skip
    versions = prepare(spec, tmp_path)
    monkeypatch.setattr("sweep.problem.scaling.MOST_BYTES", 0)
    once = prepare(spec, tmp_path)
    assert len(versions.x) == 3 and len(once.x) == 1
    rows = torch.from_numpy(RNG.permutation(90)[:40])
    for fold in range(3):
        found = once.x_of(fold)
        assert isinstance(found, ScaledRows)
        assert torch.equal(found[rows], versions.x_of(fold)[rows])
    assert once.feature_names == versions.feature_names
    folds, batches = torch.tensor([2, 0, 1, 1]), torch.from_numpy(RNG.integers(0, 90, (4, 7)))
    tables = [FoldTable.of(Experiment(p, spec, tmp_path)) for p in (once, versions)]
    taken = [table.take(folds, batches)[0] for table in tables]
    assert taken[0].dtype == taken[1].dtype and torch.equal(*taken)


def test_no_source_takes_more_room_than_it_must(tmp_path, monkeypatch):
    monkeypatch.setattr("sweep.problem.scaling.MOST_BYTES", 0)
    for source, itemsize in (("float32", 4), ("float64", 8), ("bytes", 4)):
        np.savez(tmp_path / "d.npz", X=SOURCES[source], y=RNG.normal(size=90))
        model = {"kind": KINDS.get(source, "linear")}
        spec = make_spec("d.npz", model=model, train={"learning_rate": 0.1})
        assert prepare(spec, tmp_path).x.element_size() == itemsize


@pytest.mark.parametrize("model", ["mlp dropout", "linear regression", "cnn batch norm", "lstm"])
def test_both_engines_agree_where_one_copy_is_kept(model, monkeypatch):
    monkeypatch.setattr("sweep.problem.scaling.MOST_BYTES", 0)
    assert_agree(merge(BASE, **MODELS[model]), {i: {"learning_rate": r} for i, r in RATES})


RATES = list(enumerate([0.03, 1e300, 0.1]))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_mapped_where_they_are_not_compressed(save, tmp_path):
    x, y = columns(np.float32), np.arange(90)
    save(tmp_path / "d.npz", X=np.asfortranarray(x), y=y)
    spec = make_spec("d.npz")
    data = load_data(spec, tmp_path)
    np.testing.assert_array_equal(data.x, x)
    np.testing.assert_array_equal(data.y, y)
    assert _is_mapped(data.x) == (save is np.savez)


def test_a_npy_file_is_a_table_without_names(tmp_path):
    x = columns(np.float64)
    np.save(tmp_path / "d.npy", x)
    data = load_data(make_spec({"source": "d.npy", "target": "x4"}), tmp_path)
    np.testing.assert_array_equal(data.x, x[:, :4])
    np.testing.assert_array_equal(data.y, x[:, 4])
    assert data.feature_names == ("x0", "x1", "x2", "x3")


def test_what_is_prepared_does_not_hang_on_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", X=columns(np.float32), y=np.arange(90.0))
    problem = prepare(make_spec("d.npz", train={"learning_rate": 0.1}), tmp_path)
    before = problem.x.clone(), problem.y.clone()
    # As somebody would who writes the data anew while a sweep runs.
    np.savez(tmp_path / "d.npz", X=np.zeros((1, 1)), y=np.zeros(1))
    assert torch.equal(problem.x, before[0]) and torch.equal(problem.y, before[1])


def _is_mapped(array: np.ndarray) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False
