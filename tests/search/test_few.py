"""A part of a study's trials that stands for all of them."""

import random

from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.search.few import BEST, LATEST, Few, rank

MOST = 400


def trial(number: int, state: TrialState, value: float | None = None) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        intermediate_values={0: 1.0, number % 7: 2.0} if state is TrialState.PRUNED else {},
    )
    made.number = number
    return made


def history(n: int, seed: int = 0) -> list[FrozenTrial]:
    rng = random.Random(seed)
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    drawn = rng.choices(states, weights=[12, 4, 4, 1], k=n)
    return [
        trial(i, state, rng.uniform(-1, 1) if state is TrialState.COMPLETE else None)
        for i, state in enumerate(drawn)
    ]


def finished(trials):
    return [t for t in trials if t.state is not TrialState.RUNNING]


def test_a_short_history_is_shown_as_it_is():
    trials = history(MOST)
    assert Few(MOST).of("a", trials, 1.0) is trials


def test_a_long_one_keeps_the_best_the_latest_and_whatever_is_running():
    trials = history(3000)
    for sign in (1.0, -1.0):
        few = Few(MOST).of("a", trials, sign)
        numbers = [t.number for t in few]
        assert numbers == sorted(set(numbers))
        assert MOST - LATEST < len(finished(few)) <= MOST
        assert {t.number for t in trials if t.state is TrialState.RUNNING} <= set(numbers)
        ranked = sorted(finished(trials), key=lambda t: rank(t, sign))
        assert {t.number for t in ranked[:BEST]} <= set(numbers)
        assert finished(trials)[-1].number in numbers


def test_the_others_are_spread_over_the_whole_history():
    few = finished(Few(MOST).of("a", history(3000), 1.0))
    for tenth in range(10):
        assert any(tenth * 300 <= t.number < (tenth + 1) * 300 for t in few)


def test_what_was_asked_before_changes_nothing():
    trials, remembered = history(2000), Few(MOST)
    late = {n for n in range(1400, 1500) if trials[n].state is TrialState.COMPLETE}
    for n in range(1300, 2000, 37):
        # Some trials finish after others of a greater number.
        shown = [
            trial(t.number, TrialState.RUNNING) if t.number in late and n < 1900 else t
            for t in trials[:n]
        ]
        again = Few(MOST).of("a", shown, 1.0)
        assert [t.number for t in remembered.of("a", shown, 1.0)] == [t.number for t in again]


def test_pruned_trials_rank_by_how_far_they_came_and_failed_ones_last():
    best, worst = trial(0, TrialState.COMPLETE, -1.0), trial(1, TrialState.COMPLETE, 1.0)
    far, near = trial(6, TrialState.PRUNED), trial(8, TrialState.PRUNED)
    order = [best, worst, far, near, trial(9, TrialState.FAIL)]
    assert sorted(reversed(order), key=lambda t: rank(t, 1.0)) == order
