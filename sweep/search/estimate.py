"""How long a run of a study will take, measured on this machine before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass

from optuna.trial import create_trial

from sweep.search.loop import make_mirror
from sweep.search.space import distributions
from sweep.training.experiment import Experiment
from sweep.training.pace import measure

MOST_KNOWN = 500
"""Results that a choice of the sampler is timed with."""
CHOICES = 3


@dataclass(frozen=True)
class Estimate:
    """How a run trains, and its seconds in all and by what they go into.

    `training` holds `scoring` and `compiling`; `step` is of an update of one member, all cores at
    work. `at_most`: trials may end early by the study file's own wish. None: not known.
    """

    engine: str
    seconds: float | None
    training: float | None
    scoring: float
    compiling: float
    choosing: float
    start: float
    step: float | None
    at_most: bool


def estimate(experiment: Experiment, trials: int, start: float) -> Estimate:
    """About how long `trials` trials take on this machine, as busy as it is.

        start + trials * seconds a choice + epochs * folds * trials * steps an epoch * seconds a
        member-step + scoring + compiling

    The seconds of a member-step are measured by training the first trials, on all cores at once,
    so that they need not be divided by the cores (`sweep.training.pace.measure` has the rest).
    `start` is what a process needs until it trains.
    """
    spec = experiment.spec
    mirror = make_mirror(experiment)
    settings = [spec.setting(mirror.ask(number)) for number in range(min(trials, spec.concurrency))]
    pace = measure(experiment, settings, trials)
    choosing = trials * _choice_seconds(experiment, trials)
    return Estimate(
        pace.engine,
        None if pace.training is None else start + choosing + pace.training,
        pace.training,
        pace.scoring,
        pace.compiling,
        choosing,
        start,
        pace.step,
        spec.pruner != "none" or spec.train.early_stopping is not None,
    )


def _choice_seconds(experiment: Experiment, trials: int) -> float:
    """Of a choice in the middle of the study, when half of its trials are known."""
    if experiment.spec.sampler == "grid":
        return 0.0
    space, known = distributions(experiment.spec), min(trials // 2, MOST_KNOWN)
    anyone = make_mirror(experiment, "random", concurrency=known + CHOICES)
    mirror, seconds = make_mirror(experiment, concurrency=1), []
    for number in range(known + CHOICES):
        params = anyone.ask(number)
        if number >= known:
            began = time.perf_counter()
            params = mirror.ask(number)
            seconds.append(time.perf_counter() - began)
        # A made-up score, so that each is another one.
        told = create_trial(value=float(number * 37 % 101), params=params, distributions=space)
        told.number = number
        mirror.tell(told)
    # The first choice takes in all that is known, once a run.
    return min(seconds[1:])
