"""Memory that does not suffice: fewer models at once, then a sentence; never a traceback."""

import json
import os
import platform
import subprocess
import sys
import textwrap

import pytest
import torch

from sweep.problem.networks import Recurrent
from sweep.training.memory import activations, free_bytes, is_out_of_memory

from .trials import HERE

STUDY = """
study: wide
data: {source: python:toy_data:three_classes}
task: classification
model: {kind: mlp, hidden: [1000, 1000]}
train: {learning_rate: {low: 0.01, high: 0.04}, batch_size: 16, epochs: 1}
cross_validation: {kind: kfold, folds: 3}
sampler: random
trials: 4
"""
LIMITED = """
import resource, sys
from sweep.cli import main
from sweep.store.queries import folds

# Whatever is imported is imported before the limit holds.
assert not main(["run", "wide.yaml", "--engine", "reference", "--storage", "alone.db"])
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]) * 2**20, -1))
more = ["--set", f"concurrency={sys.argv[2]}", "--memory", "1TB", *sys.argv[3:]]
code = main(["run", "wide.yaml", "--storage", "lanes.db", *more])
if code:
    sys.exit(code)
rows = zip(*(folds(f"sqlite:///{name}.db", "wide").rows for name in ("alone", "lanes")))
for (*_, expected), (*_, score) in rows:
    assert abs(score - expected) <= 1e-4 * abs(expected), (score, expected)
print("the same scores")
"""
needs_limits = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc"
)


def limited(folder, mib, concurrency, *more):
    """`sweep run` with so much memory beside what it has when it begins."""
    (folder / "wide.yaml").write_text(STUDY)
    (folder / "toy_data.py").write_text((HERE / "toy_data.py").read_text())
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(mib), str(concurrency), *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_limits
def test_out_of_memory_halves_the_slots_and_changes_no_result(tmp_path):
    # A model: 1,000 x 1,000 weights, 4 MB, several times over.
    done = limited(tmp_path, 300, 8)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory with 12 models at once; going on with 6" in done.stdout
    assert done.stdout.endswith("the same scores\n")


def refusal(folder, hidden):
    """What `sweep run` ends with, where 250 MiB do not do for one model of these widths."""
    done = limited(folder, 250, 1, "--set", f"model.hidden={hidden}")
    assert done.returncode == 1, done.stderr[-2000:]
    (last,) = done.stderr.strip().splitlines()
    return last


@needs_limits
def test_one_model_that_does_not_fit_ends_with_what_would(tmp_path):
    # The model itself, 64 MB, is made; with moments and gradient it is nine times as much.
    last = refusal(tmp_path, [4000, 4000])
    assert last.startswith("Error: Out of memory: one model in training needs about")
    assert "would fit" in last


@needs_limits
def test_a_model_that_cannot_even_be_made_is_no_failure_of_its_trials(tmp_path):
    # 576 MB.
    last = refusal(tmp_path, [12000, 12000])
    assert last.startswith("Error: Out of memory")
    assert "give smaller widths" in last


MEASURED = """
import json, resource, sys
import numpy as np
from pathlib import Path
from sweep.problem.prepare import prepare
from sweep.spec import load_spec
from sweep.training.experiment import Experiment
from sweep.training.lanes import LanesEngine
from sweep.training.member import Member
from sweep.training.memory import slot_bytes

model, shape, batch, slots = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
x, y = rng.normal(size=(2 * batch, *shape)).astype(np.float32), rng.normal(size=2 * batch)
np.savez("d.npz", X=x, y=y)
spec = load_spec({"study": "m", "data": {"source": "d.npz"}, "task": "regression", "model": model,
                  "train": {"learning_rate": 0.01, "batch_size": batch, "epochs": 1},
                  "cross_validation": {"folds": 2}}).spec
exp = Experiment(prepare(spec, Path()), spec, Path())
engine, setting = LanesEngine(exp, slots, memory=10**13), spec.setting({})
for i in range(slots):
    engine.add(Member(i // 2, i % 2, setting))
while engine.pending:
    engine.advance()
each = slot_bytes(exp.build_model(setting, 0), exp.problem.input_shape, exp.dtype, "sgd", batch)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, each)
"""
MODELS = {
    "weights": ({"kind": "mlp", "hidden": [1000, 1000]}, [100], 64, 4, 20),
    "rows": ({"kind": "mlp", "hidden": [64, 64]}, [100], 4000, 10, 50),
    "images": ({"kind": "cnn", "channels": [16, 32]}, [1, 16, 16], 64, 10, 50),
    "rnn": ({"kind": "rnn", "hidden": 32}, [28, 28], 64, 100, 400),
    "gru": ({"kind": "gru", "hidden": 32}, [28, 28], 64, 10, 60),
    "lstm": ({"kind": "lstm", "hidden": 32}, [28, 28], 64, 10, 60),
    "layers": ({"kind": "gru", "hidden": 32, "layers": 2, "dropout": 0.1}, [28, 28], 64, 10, 60),
    "normalized": ({"kind": "mlp", "hidden": [64], "normalization": "batch"}, [100], 4000, 20, 90),
}


@pytest.mark.slow
@needs_limits
@pytest.mark.parametrize("case", MODELS)
def test_the_estimate_is_what_a_slot_more_takes(case, tmp_path):
    model, shape, batch, *counts = MODELS[case]
    peaks = []
    for slots in counts:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, json.dumps([model, shape, batch, slots])],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        peak, estimate = map(int, done.stdout.split())
        peaks.append(peak)
    measured = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    assert 0.5 < measured / estimate < 1.5, (measured, estimate)


def test_activations_are_what_backward_needs():
    """Of a layer of mlp its input; of a step of a GRU its state, its gates, and more."""
    wide = torch.nn.Sequential(
        torch.nn.Linear(61, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU(),
        torch.nn.Linear(32, 10),
    )  # fmt: skip
    assert activations(wide, [61], torch.float32) == 61 + 64 + 32
    assert activations(wide.double(), [61], torch.float64) == 61 + 64 + 32
    gru = Recurrent(
        "gru", (28, 6), 1, hidden=5, layers=1, dropout=0.0, bias=True, activation="tanh"
    )
    assert 28 * 5 * 4 < activations(gru, [28, 6], torch.float32) < 28 * 5 * 16
    assert wide.training and gru.training


def test_a_failed_allocation_is_known_by_its_name_or_words():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    for said in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",
    ):
        assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@needs_limits
def test_free_memory_is_what_the_limit_leaves():
    code = (
        "import resource; from sweep.training.memory import free_bytes\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, -1)); print(free_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(HERE.parents[1])})  # fmt: skip
    assert 0.9 * 2**28 < int(done.stdout) <= 2**28 < free_bytes()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc")
def test_memory_that_was_freed_is_not_got_from_the_system_again():
    """After 80 MB in small blocks, one block after the other, each larger than those before:
    glibc by itself gives back what is larger than it has seen."""
    script = """if True:
        import resource, sys, torch
        from sweep.training.memory import keep_freed_memory

        if sys.argv[1] == "keep":
            keep_freed_memory()
        blocks = [torch.ones(1 << 20) for _ in range(20)]
        del blocks
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for megabytes in range(5, 31):
            torch.ones(megabytes << 18)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    found = {}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", script, how]
        found[how] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["leave"] > 10 * found["keep"], found
