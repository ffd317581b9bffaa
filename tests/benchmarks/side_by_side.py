"""Whole commands, timed one after the other, and what is needed to compare them fairly."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from optuna.trial import TrialState
from torch.utils.flop_counter import FlopCounterMode

from sweep.spec import encode_choice, load_spec
from sweep.store.storage import Store
from sweep.training.preflight import make_experiment
from tests.training.trials import train

HERE = Path(__file__).parent
STUDIES = HERE.parents[1] / "studies"
CORES = os.cpu_count() or 1


def environment(cache: Path) -> dict[str, str]:
    """As a user has it: no limit on threads; compiled steps under `cache`, empty at first."""
    own = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return {**own, "XDG_CACHE_HOME": str(cache)}


def run(command: list[object], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds that `python COMMAND` takes from its start to its end, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began, done.stdout


def sweep(study: Path, database: Path, trials: int, *overrides: str) -> list[object]:
    """The command that runs a study up to so many trials."""
    options: list[object] = [part for text in overrides for part in ("--set", text)]
    url = f"sqlite:///{database}"
    return ["-m", "sweep", "run", study, "--storage", url, "--trials", trials, *options, "--quiet"]


def plain_seconds(command: list[object], environment: dict[str, str], epochs: int) -> float:
    """Seconds that a peer would take to train so many epochs: it trains few, whose time without
    its start is scaled, since a trial that becomes NaN ends early there."""
    whole, printed = run(command, environment)
    peer = json.loads(printed)
    return whole - peer["seconds"] + epochs / peer["epochs_per_second"]


def gemm_rate(seconds: float = 2.0) -> float:
    """GFLOP/s of float32 matrix multiplication here, on all cores, as sustained for so long."""
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    try:
        a = torch.randn(1024, 1024)
        for _ in range(3):
            a @ a
        began, products = time.perf_counter(), 0
        while (taken := time.perf_counter() - began) < seconds:
            a @ a
            products += 1
    finally:
        torch.set_num_threads(before)
    return products * 2 * 1024**3 / taken / 1e9


class Ran:
    """A study as it was stored."""

    def __init__(self, study: Path, database: Path, *overrides: str) -> None:
        file = load_spec(study, overrides)
        self.experiment, _ = make_experiment(file)
        with Store.open(f"sqlite:///{database}") as store:
            self.trials, _ = store.finished_since(store.study_id(file.spec.study))

    @property
    def epochs(self) -> int:
        """Epochs trained, over all folds; what failed trained as far as is known of all folds."""
        return len(self.experiment.problem.folds) * sum(
            len(trial.intermediate_values) for trial in self.trials
        )

    @property
    def training_seconds(self) -> float:
        """From the first trial's start to the last one's end."""
        began = min(trial.datetime_start for trial in self.trials)
        return (max(trial.datetime_complete for trial in self.trials) - began).total_seconds()

    def flops(self, scoring: bool) -> float:
        """Of the forward and backward passes of all epochs; with `scoring`, of the forward passes
        over the rows scored as well: of the test rows each epoch, of the training rows at the end.
        Penalty and update are not counted.
        """
        batch = self.experiment.spec.train.batch_size
        folds = self.experiment.problem.folds
        module = self.experiment.build_model(self.experiment.spec.setting(self.trials[0].params), 0)
        x = torch.zeros(batch, *self.experiment.problem.input_shape)
        with FlopCounterMode(display=False) as forward:
            outputs = module(x)
        with FlopCounterMode(display=False) as backward:
            outputs.sum().backward()
        a_row = forward.get_total_flops() / batch
        rows = min(len(fold.train) for fold in folds)
        flops = self.epochs * rows * (a_row + backward.get_total_flops() / batch)
        if scoring:
            ended = sum(trial.state is TrialState.COMPLETE for trial in self.trials)
            flops += self.epochs * min(len(fold.test) for fold in folds) * a_row
            flops += ended * len(folds) * rows * a_row
        return flops

    def check_scores(self) -> None:
        """Fast and wrong does not count: the reference engine gets the stored fold scores."""
        scored = [t for t in self.trials if t.state is TrialState.COMPLETE]
        # Where training is steady, rounding stays rounding.
        steady = sorted(scored, key=lambda t: t.params["learning_rate"])[:2]
        assert len(steady) == 2
        again = train(self.experiment, {t.number: t.params for t in steady}, "reference")
        for trial in steady:
            np.testing.assert_allclose(
                again[trial.number].fold_scores, trial.user_attrs["fold_scores"], rtol=1e-3
            )

    def check_peer(self, command: list[object], environment: dict[str, str]) -> None:
        """The peer does the same work: equal parameters score the same."""
        peer = json.loads(run(command, environment)[1])
        params = {
            name: encode_choice(value) if name in ("regularizer", "clip_norm") else value
            for name, value in peer["params"].items()
        }
        again = train(self.experiment, {0: params}, "reference")
        # Rounding grows along 460 steps, where a unit switches a step sooner.
        np.testing.assert_allclose(again[0].fold_scores, peer["fold_scores"], rtol=1e-2)
