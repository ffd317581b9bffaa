"""From members back to trials."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.training.member import Done, Epoch, Failure, Outcome
from sweep.training.schedule import Finished, Report, Schedule

FOLDS = 4


class Script:
    """An engine whose members fail, or not, at given steps; it trains in a given order."""

    def __init__(self, fails_at, order):
        self.fails_at, self.order = fails_at, list(order)
        self.members, self.limits, self.trained = {}, {}, {}

    @property
    def pending(self):
        return len(self.members)

    def add(self, member):
        self.members[member.name] = member
        self.trained[member.name] = 0

    def limit(self, name, steps):
        self.limits[name] = steps

    def remove(self, name):
        self.members.pop(name, None)

    def advance(self):
        """One step of the next member whose turn it is."""
        turn = self.order.pop(0) % len(self.members) if self.order else 0
        name = sorted(self.members)[turn]
        member, step = self.members[name], self.trained[name]
        fold = member.fold
        if step >= self.limits.get(name, math.inf):
            return self._end(name, Outcome(stopped=True))
        if self.fails_at.get(fold) == step:
            return self._end(name, Outcome(failure=failure(fold, step)))
        self.trained[name] += 1
        if self.trained[name] == 10:
            return self._end(name, Outcome(score=float(fold), train_score=0.0, nonzero=1))
        return []

    def _end(self, name, outcome):
        return [Done(self.members.pop(name), outcome)]


def failure(fold, step):
    return Failure("divergence", "loss_explosion", fold, 0, step, "it exploded")


def finish(schedule):
    news = []
    while schedule.in_flight:
        news += schedule.advance()
    return news


@given(
    st.dictionaries(st.integers(0, FOLDS - 1), st.integers(0, 9), max_size=FOLDS),
    st.lists(st.integers(0, 100), max_size=60),
)
def test_the_failure_stored_is_the_least_step_and_fold_whatever_the_order(fails_at, order):
    engine = Script(fails_at, order)
    schedule = Schedule(engine, FOLDS)
    schedule.start(0, setting=None)
    (finished,) = finish(schedule)
    if not fails_at:
        assert finished.result.fold_scores == [0.0, 1.0, 2.0, 3.0]
        return
    step, fold = min((step, fold) for fold, step in fails_at.items())
    kept = finished.result.failure
    assert (kept.step, kept.fold) == (step, fold)
    assert engine.pending == 0


def test_the_score_is_the_mean_over_folds_with_its_standard_error():
    schedule = Schedule(Script({}, []), FOLDS)
    schedule.start(7, setting=None)
    (finished,) = finish(schedule)
    assert isinstance(finished, Finished) and finished.trial == 7
    assert finished.result.score == 1.5
    assert finished.result.score_se == pytest.approx(math.sqrt(5 / 3) / 2)


class Epochs:
    """An engine that plays given events."""

    pending = 0

    def __init__(self, *events):
        self.events, self.added, self.removed = list(events), [], []

    def add(self, member):
        self.added.append(member)

    def limit(self, name, steps):
        raise AssertionError

    def remove(self, name):
        self.removed.append(name)

    def advance(self):
        make = self.events.pop(0)
        return [make(self.added)]


def epoch(fold, number, score):
    return lambda members: Epoch(next(m for m in members if m.fold == fold), number, score)


def done(fold, score):
    outcome = Outcome(score=score, train_score=score, nonzero=0)
    return lambda members: Done(next(m for m in members if m.fold == fold), outcome)


def test_an_epochs_value_is_the_mean_once_every_fold_has_reached_it():
    engine = Epochs(
        epoch(0, 0, 4.0), epoch(0, 1, 2.0), epoch(1, 0, 2.0), epoch(1, 1, 0.0),
        done(0, 2.0), done(1, 0.0),
    )  # fmt: skip
    schedule = Schedule(engine, 2)
    schedule.start(0, setting=None)
    news = finish(schedule)
    assert news[:2] == [Report(0, 0, 3.0), Report(0, 1, 1.0)]
    assert news[2].result.intermediate == {0: 3.0, 1: 1.0}


def test_a_fold_that_stopped_early_keeps_its_last_score_in_the_mean():
    engine = Epochs(
        epoch(0, 0, 4.0), done(0, 4.0), epoch(1, 0, 2.0), epoch(1, 1, 0.0), done(1, 0.0)
    )
    schedule = Schedule(engine, 2)
    schedule.start(0, setting=None)
    assert finish(schedule)[-1].result.intermediate == {0: 3.0, 1: 2.0}


def test_waves_report_fold_scores_and_start_no_fold_that_pruning_spares():
    engine = Epochs(done(0, 5.0), done(1, 7.0), done(2, 1.0))
    schedule = Schedule(engine, 3, waves=True)
    schedule.start(0, setting=None)
    assert [m.fold for m in engine.added] == [0, 1]
    news = schedule.advance() + schedule.advance()
    assert news == [Report(0, 0, 5.0), Report(0, 1, 7.0)]
    assert [m.fold for m in engine.added] == [0, 1, 2]
    schedule.cancel(0)
    assert engine.removed == [(0, 2)]
