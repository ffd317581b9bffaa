"""Memory that does not suffice: fewer models at once, then a sentence; never a traceback."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from sweep.training.memory import free_bytes, is_out_of_memory

from .trials import HERE

LIMITED = """
import resource, sys
import torch
from sweep.training.lanes import LanesEngine
from sweep.training.reference import ReferenceEngine
from tests.training.test_pool import run
from tests.training.trials import BASE, experiment, merge

width, slots, mib = map(int, sys.argv[1:])
exp = experiment(merge(BASE, model={"kind": "mlp", "hidden": [width, width]},
                       train={"epochs": 1, "dtype": "float32"}))
torch.set_num_threads(1)
_, expected = run(exp, ReferenceEngine(exp), [0.01, 0.02])
engine = LanesEngine(exp, slots, print, memory=10**12)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + mib * 2**20, -1))
_, results = run(exp, engine, [0.01, 0.02])
for number, one in expected.items():
    for a, b in zip(results[number].fold_scores, one.fold_scores, strict=True):
        assert abs(a - b) <= 1e-4 * abs(b), (a, b)
print("the same scores")
"""
needs_limits = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc"
)


def limited(width, slots, mib):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(width), str(slots), str(mib)],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_limits
def test_out_of_memory_halves_the_slots_and_changes_no_result():
    # A model: 1,000 x 1,000 weights, 4 MB, several times over.
    done = limited(1000, 6, 120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory with 6 models at once; going on with 3" in done.stdout
    assert done.stdout.endswith("the same scores\n")


@needs_limits
def test_one_model_that_does_not_fit_ends_with_what_would():
    done = limited(1000, 2, 10)
    assert "out of memory with 2 models at once; going on with 1" in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert "SweepError: Out of memory: one model in training needs about" in last
    assert "would fit" in last


def test_a_failed_allocation_is_known_by_its_name_or_words():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
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
