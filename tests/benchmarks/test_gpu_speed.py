"""What lanes are worth on a GPU, against a plain PyTorch loop on the same one.

    pytest -m benchmark -n 0 -s tests/benchmarks/test_gpu_speed.py

Both train the digits MLP of `test_engine_speed`, with data on the GPU, without sampler and
database: sweep all trials x folds at once, the loop one model after the other, of which it trains
few; its time is scaled by the epochs. Warm: both have trained a little before they are timed.
"""

import argparse
import time
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from sweep.spec import load_spec
from sweep.training.device import choose_device
from sweep.training.engines import make_engine
from sweep.training.preflight import make_experiment
from sweep.training.schedule import Finished, Schedule
from tests.benchmarks import plain_optuna
from tests.benchmarks.side_by_side import STUDIES
from tests.training.trials import train

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
TRIALS, PEER_TRIALS = 400, 2
LEAST = 200.0
"""Times as fast, per epoch of a model."""


def trials_of(spec):
    """Trials at steady learning rates, spread over the regularizers and clipping."""
    rng = np.random.default_rng(0)
    names = spec.regularizer.choices
    return {
        i: {
            "learning_rate": float(10 ** rng.uniform(-3, -1.5)),
            "lambda": float(10 ** rng.uniform(-6, -3)),
            "regularizer": names[i % len(names)],
            "clip_norm": [None, 1.0][i // len(names) % 2],
        }
        for i in range(TRIALS)
    }


def ours(experiment, trials):
    """(seconds, results, how it trained)"""
    notices = []
    engine = make_engine(experiment, "lanes", notices.append)
    schedule = Schedule(engine, len(experiment.problem.folds))
    began = time.perf_counter()
    for number, params in trials.items():
        schedule.start(number, experiment.spec.setting(params))
    results, how = {}, ""
    while schedule.in_flight:
        for news in schedule.advance():
            if isinstance(news, Finished):
                results[news.trial] = news.result
        how = how or engine.describe()
    seconds = time.perf_counter() - began
    engine.close()
    assert not notices, notices
    return seconds, results, how


def plain(trials, device):
    """Seconds of an epoch of one model, in a loop as a careful user writes it."""
    options = argparse.Namespace(kind="mlp", width=64, batch=64, epochs=20)
    objective, make = plain_optuna.Objective(options), plain_optuna.make_model
    objective.folds = [tuple(part.to(device) for part in fold) for fold in objective.folds]
    with patch.object(plain_optuna, "make_model", lambda *asked: make(*asked).to(device)):
        for number, params in enumerate(list(trials.values())[: 1 + PEER_TRIALS]):
            if number == 1:
                # The first warms up.
                objective.epochs_trained, began = 0, time.perf_counter()
            given = (params["regularizer"], params["lambda"], params["clip_norm"])
            for fold in range(len(objective.folds)):
                objective.train(fold, params["learning_rate"], *given, dropout=0.0)
    return (time.perf_counter() - began) / objective.epochs_trained


def test_lanes_against_a_plain_loop_on_the_same_gpu():
    file = load_spec(STUDIES / "digits_mlp.yaml", [f"concurrency={TRIALS}"])
    here, _ = make_experiment(file)
    gpu = replace(here, device=choose_device("cuda", file.spec))
    trials = trials_of(file.spec)
    ours(gpu, dict(list(trials.items())[:8]))
    seconds, results, how = ours(gpu, trials)
    epochs = sum(len(r.intermediate) for r in results.values()) * len(here.problem.folds)
    assert epochs == TRIALS * 20 * len(here.problem.folds)
    loop = plain(trials, gpu.device)
    ratio = loop * epochs / seconds
    updates = epochs * 23
    print(
        f"\n{torch.cuda.get_device_name()}: {how}: {seconds:.2f} s, "
        f"{1e6 * seconds / updates:.2f} us an update of a model; plain loop "
        f"{1e6 * loop / 23:.0f} us: {ratio:.0f}x (aimed at: {LEAST:g}x)"
    )
    # Fast and wrong does not count.
    steady = dict(list(trials.items())[:2])
    for number, alone in train(here, steady, "reference").items():
        np.testing.assert_allclose(results[number].fold_scores, alone.fold_scores, rtol=1e-3)
    assert ratio >= LEAST
