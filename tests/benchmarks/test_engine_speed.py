"""What training all trials x folds as one program is worth, against the plain loop.

    pytest -m benchmark -n 0 -s tests/benchmarks/test_engine_speed.py

Both sides run as whole processes, one after the other in one run: start, data, sampler, training,
database. The plain loop runs fewer trials; its time without the start is scaled by the epochs
trained, since a trial that becomes NaN ends early there. The compile cache is cold in the first
run of sweep and warm in the second.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.benchmark

HERE = Path(__file__).parent
STUDY = HERE.parents[1] / "studies" / "digits_mlp.yaml"
PLAIN_TRIALS = 8


def run(command, environment):
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, done.stdout


def gemm_rate():
    """GFLOP/s of float32 matrix multiplication here."""
    a = torch.randn(1024, 1024)
    for _ in range(3):
        a @ a
    best = min(_seconds(lambda: a @ a) for _ in range(20))
    return 2 * 1024**3 / best / 1e9


def _seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


CASES = {
    # name: (width, batch, epochs, trials, the least ratio that is promised)
    "40 trials": (64, 64, 20, 40, 1.5),
    "200 trials": (64, 64, 20, 200, 8.0),
    "200 trials, 32-32, batch 32": (32, 32, 20, 200, 6.0),
}


@pytest.mark.parametrize("case", CASES)
def test_sweep_against_plain_optuna_and_pytorch(case, tmp_path):
    width, batch, epochs, trials, least = CASES[case]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    plain = [str(HERE / "plain_optuna.py"), str(PLAIN_TRIALS), str(tmp_path / "plain.db")]
    whole, printed = run([*plain, str(width), str(batch), str(epochs)], environment)
    peer = json.loads(printed)

    ours = {}
    for cache in ("cold", "warm"):
        database = f"sqlite:///{tmp_path / cache}.db"
        command = ["-m", "sweep", "run", str(STUDY), "--storage", database, "--quiet"]
        command += [
            "--set",
            f"model.hidden=[{width}, {width}]",
            "--set",
            f"train.batch_size={batch}",
        ]
        command += ["--set", f"train.epochs={epochs}", "--trials", str(trials)]
        ours[cache], _ = run(command, environment)
    epochs_trained = check_scores(f"sqlite:///{tmp_path / 'warm'}.db", trials)
    plain_seconds = whole - peer["seconds"] + peer["seconds"] * epochs_trained / peer["epochs"]

    steps = epochs_trained * -(-1437 // batch)
    flops = 6 * batch * (61 * width + width * width + 10 * width)
    rate = gemm_rate()
    used = steps * flops / ours["warm"] / 1e9
    print(
        f"\n{case}: plain {plain_seconds:.0f} s (from {PLAIN_TRIALS} trials); "
        f"sweep cold {ours['cold']:.1f} s = {plain_seconds / ours['cold']:.1f}x, "
        f"warm {ours['warm']:.1f} s = {plain_seconds / ours['warm']:.1f}x; "
        f"GEMM {rate:.0f} GFLOP/s, {used / rate:.0%} of it in use over the whole process"
    )
    assert plain_seconds / ours["warm"] >= least


def check_scores(url, trials):
    """Fast and wrong does not count: the reference engine gets the stored fold scores.

    Returns the epochs trained, over all folds.
    """
    from sweep.problem.prepare import prepare
    from sweep.search.study import stored_spec
    from sweep.store.storage import Store
    from sweep.training.experiment import Experiment
    from tests.training.trials import train

    with Store.open(url) as store:
        study_id = store.study_id("digits-mlp")
        spec = stored_spec(store.study_attrs(study_id), "digits-mlp")
        stored, _ = store.finished_since(study_id)
    assert len(stored) == trials
    steady = [t for t in stored if t.value is not None and t.params["learning_rate"] < 0.02][:2]
    experiment = Experiment(prepare(spec, STUDY.parent), spec, STUDY.parent)
    again = train(experiment, {t.number: t.params for t in steady}, "reference")
    for trial in steady:
        np.testing.assert_allclose(
            again[trial.number].fold_scores, trial.user_attrs["fold_scores"], rtol=1e-3
        )
    return sum(5 * len(t.intermediate_values) for t in stored)
