"""A million rows of a hundred columns are trained on within 4 GiB."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

STUDY = """
study: large
data: {source: large.npz, standardize_target: fold}
task: regression
model: {kind: mlp, hidden: [16]}
train: {learning_rate: {low: 0.05, high: 0.2}, batch_size: 20000, epochs: 1}
cross_validation: {folds: 2}
trials: 2
"""


def resident(process):
    """Bytes that a process and its descendants hold in memory."""
    children, sizes = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
        sizes[int(path.parent.name)] = int(fields[21])
    total, found = 0, [process]
    while found:
        one = found.pop()
        total += sizes.get(one, 0)
        found += children.get(one, [])
    return total * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_million_rows_train_within_4_gib(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1_000_000, 100), dtype=np.float32)
    y = x @ rng.normal(size=100).astype(np.float32)
    np.savez(tmp_path / "large.npz", X=x, y=y)
    (tmp_path / "large.yaml").write_text(STUDY)
    del x, y
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-m", "sweep", "run", "large.yaml", "--storage", "sqlite:///s.db"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        peak = 0
        while running.poll() is None:
            peak = max(peak, resident(running.pid))
            time.sleep(0.05)
        said = running.stdout.read()
    assert running.returncode == 0 and "2 trials, 2 complete" in said, said
    assert peak < 4 << 30, f"{peak / 2**30:.2f} GiB"
