"""Laws of the mirror: the same seed gives the same trials, whatever arrives when."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from sweep.search.mirror import Mirror
from sweep.search.sampler import SAMPLERS
from tests.search.cases import LEARNING, SPACES, finished, score

EPOCHS = 9


def _mirror(
    name: str,
    *,
    concurrency: int = 4,
    pruner: str = "none",
    direction: str = "minimize",
    **more: Any,
) -> Mirror:
    given: dict[str, Any] = {"space": SPACES[name], "seed": 0, "n_folds": 5, "epochs": EPOCHS}
    return Mirror(
        direction=direction,
        sampler=name,
        pruner=pruner,
        concurrency=concurrency,
        **{**given, **more},
    )


def _reports(params: Mapping[str, Any], pruner: str) -> list[float]:
    """The score after every epoch, or that of every fold."""
    value = score(params)
    end = 1.0 if value is None else value
    if pruner == "wilcoxon":
        return [end + 0.01 * fold for fold in range(5)]
    return [end + 1.0 / (1 + epoch) for epoch in range(EPOCHS)]


class Run:
    """A process that trains: it asks where it may, and what is in flight advances as `pick` says.

    `pick` chooses among the trials in flight; the one chosen reports its next step, and is told
    at its end.
    """

    def __init__(self, mirror: Mirror, pruner: str, *, kind: str = "divergence", sign: float = 1):
        self.mirror, self.pruner, self.kind, self.sign = mirror, pruner, kind, sign
        self.choices: dict[int, dict[str, Any]] = {}
        self.results: dict[int, FrozenTrial] = {}
        self.flying: dict[int, dict[int, float]] = {}
        self.next = 0

    def fill(self, n: int) -> None:
        while self.next < n and self.mirror.may_ask():
            self.choices[self.next] = self.mirror.ask(self.next)
            self.flying[self.next] = {}
            self.next += 1

    def advance(self, number: int) -> None:
        params, done = self.choices[number], self.flying[number]
        reports = _reports(params, self.pruner)
        step = len(done)
        done[step] = self.sign * reports[step]
        pruned = self.mirror.report(number, step, done[step])
        if pruned or len(done) == len(reports):
            value = score(params)
            trial = finished(
                number,
                params,
                None if value is None else self.sign * value,
                self.mirror._space,
                kind=self.kind,
                steps=self.flying.pop(number),
                pruned=pruned,
            )
            if self.pruner == "wilcoxon" and trial.state is TrialState.COMPLETE:
                trial.set_user_attr("fold_scores", list(done.values()))
            self.results[number] = trial
            self.mirror.tell(trial)

    def until(self, n: int, pick: Callable[[Sequence[int]], int]) -> None:
        self.fill(n)
        while self.flying:
            self.advance(pick(sorted(self.flying)))
            self.fill(n)

    def pruned(self) -> dict[int, int]:
        """At which step each pruned trial was stopped."""
        return {
            number: len(trial.intermediate_values)
            for number, trial in self.results.items()
            if trial.state is TrialState.PRUNED
        }


_CANONICAL: dict[tuple[str, str, int], Run] = {}


def _in_order(name: str, pruner: str, n: int) -> Run:
    if (name, pruner, n) not in _CANONICAL:
        run = Run(_mirror(name, pruner=pruner), pruner)
        run.until(n, min)
        _CANONICAL[name, pruner, n] = run
    return _CANONICAL[name, pruner, n]


SLOW = pytest.mark.slow
GP_SLOW = [pytest.param(name, marks=[SLOW] * (name == "gp")) for name in LEARNING]
PAIRS = [(name, "none") for name in SAMPLERS] + [
    ("tpe", "median"),
    ("tpe", "hyperband"),
    ("tpe", "wilcoxon"),
    ("random", "median"),
    ("random", "hyperband"),
    ("random", "wilcoxon"),
]


@pytest.mark.parametrize(
    ("name", "pruner"),
    [pytest.param(*pair, marks=[SLOW] * (pair[0] == "gp")) for pair in PAIRS],
)
@given(data=st.data())
@settings(max_examples=3)
def test_same_seed_same_trials_whatever_the_timing(
    name: str, pruner: str, data: st.DataObject
) -> None:
    n = 17 if name == "gp" else 40
    rng = data.draw(st.randoms(use_true_random=False))
    run = Run(_mirror(name, pruner=pruner), pruner)
    run.until(n, rng.choice)
    assert run.choices == _in_order(name, pruner, n).choices
    assert run.pruned() == _in_order(name, pruner, n).pruned()


@pytest.mark.parametrize(
    ("name", "pruner", "stop"),
    [
        pytest.param(*pair, stop, marks=[SLOW] * (pair[0] == "gp" and stop != 3))
        for stop in (0, 1, 3, 11, 25)
        for pair in PAIRS
    ],
)
def test_a_continued_study_goes_on_as_an_uninterrupted_one(
    name: str, pruner: str, stop: int
) -> None:
    """Whatever was in flight is resumed; GP, whose samples are costly, stops sooner."""
    n = 17 if name == "gp" else 40
    stop = min(stop, n - 2)
    whole = _in_order(name, pruner, n)
    before = Run(_mirror(name, pruner=pruner), pruner)
    rng = random.Random(stop)
    before.fill(n)
    while len(before.results) < stop:
        before.advance(rng.choice(sorted(before.flying)))
        before.fill(n)

    after = Run(_mirror(name, pruner=pruner), pruner)
    told = list(before.results.values())
    rng.shuffle(told)
    for trial in told:
        after.mirror.tell(trial)
    after.next, after.choices = before.next, dict(before.choices)
    for number in before.flying:
        after.mirror.adopt(number, before.choices[number])
        after.flying[number] = {}
    after.until(n, min)
    assert after.choices == whole.choices
    assert before.pruned() | after.pruned() == whole.pruned()


@pytest.mark.parametrize("pruner", ["median", "hyperband", "wilcoxon"])
def test_the_runs_above_prune_something(pruner: str) -> None:
    assert len(_in_order("random", pruner, 40).pruned()) > 2


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_divergence_teaches_every_sampler_but_the_grid(name: str, direction: str) -> None:
    """And a failure of another kind is no evidence, whichever it is."""
    n = 17 if name == "gp" else 40
    choices = {}
    for kind in ("divergence", "error", "worker_lost", "cancelled"):
        sign = 1.0 if direction == "minimize" else -1.0
        run = Run(_mirror(name, direction=direction), "none", kind=kind, sign=sign)
        run.until(n, min)
        choices[kind] = run.choices
    assert choices["error"] == choices["worker_lost"] == choices["cancelled"]
    assert (choices["divergence"] != choices["error"]) == (name != "grid")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_choice_waits_for_the_results_it_must_see(name: str) -> None:
    mirror = _mirror(name, concurrency=3)
    params = {number: mirror.ask(number) for number in range(3)}
    assert not mirror.may_ask()
    mirror.tell(finished(1, params[1], 0.5, SPACES[name]))
    mirror.tell(finished(2, params[2], 0.5, SPACES[name]))
    assert not mirror.may_ask()
    with pytest.raises(AssertionError, match="trial 3 needs the result of trial 0"):
        mirror.ask(3)


def _with_history(name: str, n: int = 20, *, twice: bool = False) -> Mirror:
    mirror = _mirror(name, concurrency=1)
    run = Run(mirror, "none")
    run.until(n, min)
    for trial in run.results.values() if twice else ():
        mirror.tell(trial)
    return mirror


def test_a_trial_of_another_process_is_visible_when_it_arrives_and_never_waited_for() -> None:
    params = dict(_with_history("tpe").ask(20))
    good = {**params, "learning_rate": 0.1, "lambda": 1e-6, "hidden": 8}
    alone, joined = _with_history("tpe"), _with_history("tpe")
    for number in range(20, 30):
        joined.adopt(number, good, elsewhere=True)
    assert joined.may_ask()
    for number in range(20, 30):
        joined.tell(finished(number, good, 0.0, SPACES["tpe"]))
    assert joined.may_ask()
    assert joined.ask(30) != alone.ask(30)


def test_a_trial_in_flight_elsewhere_repels() -> None:
    """The constant liar: what others are trying already is not proposed again."""
    params = _with_history("tpe").ask(25)
    crowded = _with_history("tpe")
    for number in range(20, 25):
        crowded.adopt(number, params, elsewhere=True)
    assert crowded.ask(25) != params


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trial_told_twice_counts_once(name: str) -> None:
    once, twice = _with_history(name, 12), _with_history(name, 12, twice=True)
    assert once.ask(12) == twice.ask(12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_withdrawn_trial_leaves_no_trace(name: str) -> None:
    mirror, other = _mirror(name), _mirror(name)
    for number in range(4):
        mirror.ask(number)
    for number in (2, 3):
        mirror.withdraw(number)
    for number in range(2):
        other.ask(number)
    assert mirror.may_ask()
    assert mirror.ask(2) == other.ask(2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_enqueued_trials_come_first_and_what_they_leave_open_is_sampled(name: str) -> None:
    learning_rate = 0.3
    enqueue = [
        {"learning_rate": learning_rate, "lambda": 0.1, "regularizer": "l2", "hidden": 16},
        {"learning_rate": learning_rate},
    ]
    mirror = _mirror(name, enqueue=enqueue)
    assert mirror.ask(0) == enqueue[0]
    second = mirror.ask(1)
    assert second["learning_rate"] == learning_rate
    assert second.keys() == SPACES[name].keys()
    assert mirror.ask(2)["learning_rate"] != learning_rate


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trial_that_was_never_chosen_teaches_nothing(name: str) -> None:
    """A trial may fail before it has parameters, or belong to another program's space."""
    mirror = _mirror(name, concurrency=1)
    mirror.tell(finished(0, {}, None, {}))
    mirror.tell(finished(1, {}, 0.0, {}))
    assert mirror.ask(2).keys() == SPACES[name].keys()


@pytest.mark.parametrize("name", GP_SLOW)
def test_an_infinite_score_is_a_divergence(name: str) -> None:
    runs = []
    for infinite in (True, False):
        mirror = _mirror(name, concurrency=1)
        for number in range(16):
            params = mirror.ask(number)
            value = score(params)
            if infinite and value is None:
                value = float("inf")
            mirror.tell(finished(number, params, value, SPACES[name]))
        runs.append(mirror.ask(16))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["random", "qmc", "grid", "tpe"])
def test_asking_stays_cheap_at_five_thousand_trials(name: str) -> None:
    """Against a hundred, side by side: TPE is shown 500 at most, the others look at none. What is
    walked through once (1 to 2 times as long on a quiet machine) may have to come from memory."""
    space: dict[str, BaseDistribution] = SPACES[name]
    params = _mirror(name).ask(0)
    mirrors = {there: _mirror(name, concurrency=32) for there in (100, 5000)}
    for there, mirror in mirrors.items():
        for number in range(there):
            mirror.tell(finished(number, params, float(number), space))
        mirror.ask(there)
    seconds: dict[int, list[float]] = {there: [] for there in mirrors}
    for i in range(1, 10):
        for there, mirror in mirrors.items():
            start = time.perf_counter()
            mirror.ask(there + i)
            seconds[there].append(time.perf_counter() - start)
            mirror.tell(finished(there + i, params, float(i), space))
    assert min(seconds[5000]) < 20 * min(seconds[100]), seconds
