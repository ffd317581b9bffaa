"""What a GPU alone can show; on a machine without one these are skipped. What can be told without
one is in test_device.py.
"""

import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from sweep.store import queries
from sweep.training.device import choose_device
from sweep.training.memory import free_bytes
from tests.test_cli_engines import STUDY

from .test_device import FOUR, STUDIES, engine_of, studied
from .test_engines_agree import assert_same
from .trials import BASE, HERE, experiment, merge, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
# The second one diverges, but not so far that the order of a sum decides what overflows.
TRIALS = {i: {"learning_rate": rate} for i, rate in enumerate([0.03, 1e100, 0.1])}


def on_gpu(exp):
    return replace(exp, device=choose_device("cuda", exp.spec))


@pytest.mark.parametrize("case", STUDIES)
def test_lanes_on_a_gpu_are_captured_and_come_to_what_the_reference_comes_to_on_the_cpu(case):
    exp = studied(case)
    results, notices, words = engine_of(on_gpu(exp), 64, TRIALS)
    assert not notices and all("captured, cuda" in text for text in words - {"lanes"})
    assert_same(exp, results, train(exp, TRIALS, "reference"))


@pytest.mark.parametrize("case", STUDIES)
def test_the_reference_on_a_gpu_comes_to_what_it_comes_to_on_the_cpu(case):
    exp = studied(case)
    alone = train(exp, TRIALS, "reference")
    assert_same(exp, train(on_gpu(exp), TRIALS, "reference"), alone)


def test_float32_on_a_gpu_is_float32():
    """Not TF32, which torch would take for convolutions of its own."""
    image = {"data": {"source": "python:toy_data:images"}, "model": {"kind": "cnn", "hidden": 5}}
    exp = experiment(merge(BASE, **image, train={"dtype": "float32"}))
    trials = {0: {"learning_rate": 0.03}, 1: {"learning_rate": 0.1}}
    alone = train(exp, trials, "reference")
    for engine in ("lanes", "reference"):
        assert_same(exp, train(on_gpu(exp), trials, engine), alone)


def test_a_captured_step_and_an_eager_one_come_to_the_same():
    exp = on_gpu(studied("clipping all"))
    assert_same(exp, train(exp, TRIALS, compile_when="auto"), train(exp, TRIALS))


def test_fewer_lanes_than_members_are_captured_anew_and_change_no_result():
    exp = studied("model mlp dropout")
    results, notices, _ = engine_of(on_gpu(exp), 3, FOUR)
    assert not notices
    assert_same(exp, results, train(exp, FOUR, "reference"))


def test_memory_that_runs_out_on_a_gpu_halves_the_slots_and_changes_no_result():
    study = merge(BASE, model={"kind": "mlp", "hidden": [1000, 1000]}, train={"epochs": 1})
    exp = experiment(study)
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(GPU).total_memory
    more = torch.cuda.memory_reserved(GPU) + (600 << 20)
    torch.cuda.set_per_process_memory_fraction(min(1.0, more / whole))
    try:
        trials = {i: {"learning_rate": 0.01 * (i + 1)} for i in range(8)}
        results, notices, _ = engine_of(on_gpu(exp), 24, trials, memory=10**13)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert notices and all("out of memory with" in text for text in notices)
    assert_same(exp, results, train(exp, trials, "reference"))


def test_free_memory_of_a_gpu_counts_what_torch_keeps_and_does_not_use():
    torch.cuda.empty_cache()
    before = free_bytes(GPU)
    held = torch.empty(256 << 20, dtype=torch.uint8, device=GPU)
    assert free_bytes(GPU) <= before - held.numel() + (64 << 20)
    del held
    assert free_bytes(GPU) >= before - (64 << 20)


def test_a_run_takes_the_gpu_and_names_it(tmp_path, monkeypatch, command):
    shutil.copy(HERE / "toy_data.py", tmp_path)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(STUDY))
    monkeypatch.chdir(tmp_path)
    code, out, err = command("run", "own.yaml", "--storage", "gpu.db")
    assert (code, err) == (0, "") and "\nEngine: lanes, 12 slots, captured, cuda\n" in out
    code, out, err = command("run", "own.yaml", "--storage", "cpu.db", "--device", "cpu")
    assert (code, err) == (0, "") and "\nEngine: lanes, 12 slots, eager\n" in out
    gpu, cpu = (queries.folds(f"sqlite:///{name}.db", "own").rows for name in ("gpu", "cpu"))
    assert [row[-1] for row in gpu] == pytest.approx([row[-1] for row in cpu], rel=1e-4)
    again = ("replay", "own", "0", "--allow", "toy_data", "--storage", "gpu.db")
    assert command(*again)[0] == 0
    assert command("check", "own.yaml")[1].count("cuda") >= 1
