"""What is going on in a sweep, for whoever watches."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState


@dataclass
class Status:
    """The state of a study, trials of other processes included."""

    study: str
    total: int
    direction: str
    score: str
    complete: int = 0
    pruned: int = 0
    running: int = 0
    under_way: float = 0.0
    """What is done of the trials in training here, in trials."""
    failed: Counter[str] = field(default_factory=Counter)
    best: FrozenTrial | None = None
    engine: str = ""
    started: float = field(default_factory=time.monotonic)
    done_before: int = 0

    @property
    def done(self) -> int:
        return self.complete + self.pruned + self.failed.total()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def trials_per_second(self) -> float:
        return (self.done - self.done_before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        rate = self.trials_per_second
        # Before the first trials end, what is done of them tells how long they take.
        done = self.done + self.under_way
        rate = max(rate, (done - self.done_before) / max(self.seconds, 1e-9))
        return max(0.0, self.total - done) / rate if rate > 0 else None

    def count(self, trial: FrozenTrial) -> None:
        """Takes a finished trial into account."""
        if trial.state == TrialState.COMPLETE:
            self.complete += 1
            if self.best is None or self._better(trial, self.best):
                self.best = trial
        elif trial.state == TrialState.PRUNED:
            self.pruned += 1
        else:
            failure: Any = trial.user_attrs.get("failure") or {}
            self.failed[failure.get("reason") or failure.get("kind") or "unknown"] += 1

    def _better(self, one: FrozenTrial, other: FrozenTrial) -> bool:
        assert one.value is not None and other.value is not None
        if self.direction == "maximize":
            return one.value > other.value
        return one.value < other.value


class Observer(Protocol):
    """Told how a sweep goes; called often, so it should be quick."""

    def notice(self, text: str) -> None: ...
    def update(self, status: Status) -> None: ...


class Silent:
    """An observer that says nothing."""

    def notice(self, text: str) -> None:
        pass

    def update(self, status: Status) -> None:
        pass
