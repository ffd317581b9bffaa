"""From members back to trials: who trains next, what a trial's folds add up to.

A trial whose fold diverges has failed; its other folds train on only as far as they could have
diverged before it, so that the failure kept is the least (step, fold) over all folds, whatever
the order of training.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sweep.spec import Setting
from sweep.training.member import Done, Event, Failure, Member, Outcome

WAVE = 2
"""Folds that train together where pruning looks at one fold after the other."""


class Engine(Protocol):
    """What `reference` and `lanes` have in common."""

    @property
    def pending(self) -> int: ...
    def add(self, member: Member) -> None: ...
    def limit(self, name: tuple[int, int], steps: int) -> None: ...
    def remove(self, name: tuple[int, int]) -> None: ...
    def advance(self) -> list[Event]: ...
    def expect(self, members: int) -> None: ...
    def describe(self) -> str: ...
    def close(self, finish: bool = False) -> None: ...


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to. Exactly one of: fold_scores, failure, pruned."""

    fold_scores: list[float] | None = None
    train_scores: list[float] = field(default_factory=list)
    nonzero: list[int] = field(default_factory=list)
    more_scores: dict[str, list[float]] = field(default_factory=dict)
    intermediate: dict[int, float] = field(default_factory=dict)
    failure: Failure | None = None
    pruned: bool = False

    @property
    def score(self) -> float | None:
        """The unweighted mean of the fold scores."""
        return statistics.fmean(self.fold_scores) if self.fold_scores else None

    @property
    def score_se(self) -> float | None:
        """std(ddof=1) / sqrt(K) of the K fold scores."""
        if not self.fold_scores or len(self.fold_scores) < 2:
            return None
        return statistics.stdev(self.fold_scores) / math.sqrt(len(self.fold_scores))


class Report(NamedTuple):
    """An intermediate value: the mean score after epoch `step`, or fold `step`'s score."""

    trial: int
    step: int
    value: float


class Finished(NamedTuple):
    """A trial ended."""

    trial: int
    result: TrialResult


@dataclass
class _Running:
    setting: Setting
    waiting: list[int]
    live: set[int] = field(default_factory=set)
    epochs: dict[int, dict[int, float]] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    intermediate: dict[int, float] = field(default_factory=dict)

    @property
    def failure(self) -> Failure | None:
        failures = [o.failure for o in self.outcomes.values() if o.failure is not None]
        return min(failures, key=lambda f: (f.step, f.fold)) if failures else None


class Schedule:
    """Trials in flight on an engine."""

    def __init__(self, engine: Engine, n_folds: int, *, waves: bool = False) -> None:
        self.engine, self.n_folds, self.waves = engine, n_folds, waves
        self._trials: dict[int, _Running] = {}

    @property
    def in_flight(self) -> int:
        return len(self._trials)

    def start(self, trial: int, setting: Setting) -> None:
        running = _Running(setting, list(range(self.n_folds)))
        self._trials[trial] = running
        self._next_wave(trial, running)

    def cancel(self, trial: int) -> None:
        """Forgets a trial, if it is still training: pruned, or somebody else's by now."""
        running = self._trials.pop(trial, None)
        for fold in running.live if running is not None else ():
            self.engine.remove((trial, fold))

    def advance(self) -> list[Report | Finished]:
        """Trains for a moment and says what came of it."""
        news: list[Report | Finished] = []
        for event in self.engine.advance():
            running = self._trials.get(event.member.trial)
            if running is None or event.member.fold not in running.live:
                continue
            if isinstance(event, Done):
                news += self._member_done(event, running)
            else:
                running.epochs.setdefault(event.member.fold, {})[event.epoch] = event.score
            news += self._epoch_means(event.member.trial, running)
            if not running.live and event.member.trial in self._trials:
                news += self._settle(event.member.trial, running)
        return news

    def _next_wave(self, trial: int, running: _Running) -> None:
        size = WAVE if self.waves else len(running.waiting)
        wave, running.waiting = running.waiting[:size], running.waiting[size:]
        running.live |= set(wave)
        for fold in wave:
            self.engine.add(Member(trial, fold, running.setting))

    def _member_done(self, event: Done, running: _Running) -> list[Report | Finished]:
        trial, fold = event.member.trial, event.member.fold
        running.live.discard(fold)
        running.outcomes[fold] = event.outcome
        failure = running.failure
        if failure is not None:
            for other in running.live:
                # An earlier fold at the same step would still come first.
                tries = failure.step + (1 if other < failure.fold else 0)
                self.engine.limit((trial, other), tries)
        return []

    def _epoch_means(self, trial: int, running: _Running) -> list[Report | Finished]:
        """Mean scores of epochs that every fold has now reached.

        Also of a trial that failed: the epochs before its failure, whatever came first in time.
        """
        if self.waves or len(running.epochs) < self.n_folds:
            return []
        failure = running.failure
        reports: list[Report | Finished] = []
        while True:
            epoch = len(running.intermediate)
            if failure is not None and epoch >= failure.epoch:
                return reports
            scores = []
            for fold, known in running.epochs.items():
                if epoch in known:
                    scores.append(known[epoch])
                elif fold in running.outcomes and any(epoch in e for e in running.epochs.values()):
                    # Stopped early: it keeps its last score.
                    scores.append(known[max(known)])
            if len(scores) < self.n_folds:
                return reports
            value = statistics.fmean(scores)
            running.intermediate[epoch] = value
            reports.append(Report(trial, epoch, value))

    def _settle(self, trial: int, running: _Running) -> list[Report | Finished]:
        """No fold is training: the trial failed, goes on with its next folds, or is complete."""
        failure = running.failure
        if failure is not None:
            del self._trials[trial]
            result = TrialResult(intermediate=running.intermediate, failure=failure)
            return [Finished(trial, result)]
        news: list[Report | Finished] = []
        if self.waves:
            for fold in sorted(running.outcomes):
                score = running.outcomes[fold].score
                if fold not in running.intermediate and score is not None:
                    running.intermediate[fold] = score
                    news.append(Report(trial, fold, score))
        if running.waiting:
            self._next_wave(trial, running)
            return news
        del self._trials[trial]
        outcomes = [running.outcomes[fold] for fold in range(self.n_folds)]
        result = TrialResult(
            fold_scores=[_given(o.score) for o in outcomes],
            train_scores=[_given(o.train_score) for o in outcomes],
            nonzero=[o.nonzero or 0 for o in outcomes],
            more_scores={
                name: [o.more_scores[name] for o in outcomes] for name in outcomes[0].more_scores
            },
            intermediate=running.intermediate,
        )
        return [*news, Finished(trial, result)]


def _given(value: float | None) -> float:
    assert value is not None
    return value
