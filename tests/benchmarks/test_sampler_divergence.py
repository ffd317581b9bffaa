"""How many trials explode, and whether anything is lost by avoiding it.

    pytest -m benchmark -n 0 -s tests/benchmarks/test_sampler_divergence.py [-k "random and mlp"]

Each of Optuna's samplers as it is, its diverged trials told as FAIL, against the same sampler with
the same seed inside DivergenceAwareSampler: 96 trials (gp: 48), 8 asked at once, 5 seeds. Two
problems are computed exactly, two are networks trained by the project's own engine. The best
scores are compared seed by seed with Wilcoxon's signed-rank test, one-sided: of five seeds its
least p is 1/32, so all five would have to be worse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from scipy.stats import wilcoxon

from sweep.search.divergence_aware import DivergenceAwareSampler
from tests.benchmarks.networks import Network
from tests.search.landscapes import PLAIN, DecayedLogistic, Landscape, Quadratic, found, searches

pytestmark = pytest.mark.benchmark

SEEDS = range(5)
PROBLEMS: dict[str, Callable[[], Landscape]] = {
    "quadratic": Quadratic,
    "decayed-logistic": DecayedLogistic,
    "temporal-order": functools.partial(Network, "temporal-order"),
    "mlp": functools.partial(Network, "mlp"),
}


MISSED = {("cmaes", "decayed-logistic"): 0.6, ("tpe", "mlp"): 0.4}
"""What is left of the diverged trials where it is more than a third: these samplers lose so few of
their trials anyhow that most of the loss falls before there is anything to learn from.
"""


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_third_diverges_and_the_best_is_no_worse(name: str, problem: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = 48 if name == "gp" else 96
    plain = [PLAIN[name](seed) for seed in SEEDS]
    aware = [DivergenceAwareSampler(PLAIN[name](seed), seed=seed) for seed in SEEDS]
    studies = searches(PROBLEMS[problem](), [*plain, *aware], trials=trials)
    results = [found(trials) for trials in studies]
    before, after = results[: len(SEEDS)], results[len(SEEDS) :]
    shares = [np.mean([r.n_diverged for r in side]) / trials for side in (before, after)]
    bests = [np.array([r.best for r in side]) for side in (before, after)]
    p = wilcoxon(bests[1] - bests[0], alternative="greater").pvalue
    print(
        f"\n{problem:17}{name:7} wasted {shares[0]:6.1%} -> {shares[1]:6.1%}, to"
        f" {shares[1] / shares[0]:.2f}; best, median {np.median(bests[0]):.4f} ->"
        f" {np.median(bests[1]):.4f}; worse? p = {p:.2f}"
    )
    assert shares[1] <= MISSED.get((name, problem), 1 / 3) * shares[0]
    assert p > 0.05
