"""How long `sweep check` says that a run takes, and how long it then takes.

    pytest -m benchmark -n 0 -s tests/benchmarks/test_time_estimate.py

Whole processes, imports and database included; of each study the estimate comes right before the
run. A compiled step is looked for where earlier runs have left it, as it would be for a user.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark

ROOT = Path(__file__).resolve().parents[2]
OWN = """
study: own
data: {source: sklearn:digits}
task: classification
model: {kind: python:toy_data:LooksAtData, width: 64}
train: {learning_rate: {low: 0.01, high: 0.1, log: true}, batch_size: 64, epochs: 10}
trials: 12
"""


def sweep(*arguments: str, folder: Path) -> tuple[str, float]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, time.perf_counter() - began


@pytest.mark.parametrize("name", ["table", "residual_net", "digits_mlp", "diabetes_path", "own"])
def test_the_estimate_is_within_a_factor_of_two(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "toy_data.py").write_text((ROOT / "tests" / "training" / "toy_data.py").read_text())
    study = "own.yaml" if name == "own" else str(ROOT / "studies" / f"{name}.yaml")
    said, spent = sweep("check", study, "--format", "json", folder=tmp_path)
    estimate = json.loads(said)["time"]
    _, seconds = sweep("run", study, "--quiet", "--storage", "sqlite:///s.db", folder=tmp_path)
    print(
        f"\n{name}: {estimate['engine']}; estimated {estimate['seconds']:.1f} s in {spent:.1f} s, "
        f"took {seconds:.1f} s"
    )
    assert 0.5 < estimate["seconds"] / seconds < 2
