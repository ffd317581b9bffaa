"""The values that pass between the store and those who train: trials held, trials ended."""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.trial import TrialState


@dataclass(frozen=True)
class Trial:
    """A trial that a worker holds: Optuna's id and number, parameters in external values.

    `attempts` is 1 for a new trial and one more each time it was taken over from a lost worker.
    """

    trial_id: int
    number: int
    params: dict[str, Any]
    attempts: int = 1


@dataclass(frozen=True)
class Finished:
    """The end of a trial. A COMPLETE one has a finite value, a FAIL none (ValueError otherwise).

    A PRUNED trial without a value gets its last intermediate value, as Optuna's `tell` does it.
    `started` and `finished` (aware, or naive local time) default to the claim's and to now.
    """

    trial: Trial
    state: TrialState
    value: float | None = None
    intermediate: Mapping[int, float] = field(default_factory=dict)
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    started: datetime | None = None
    finished: datetime | None = None

    def __post_init__(self) -> None:
        if not self.state.is_finished():
            raise ValueError(f"{self.state.name} is not the end of a trial.")
        if self.state == TrialState.FAIL and self.value is not None:
            raise ValueError(f"Trial {self.trial.number} failed: it has no value.")
        complete = self.state == TrialState.COMPLETE
        if complete and (self.value is None or not math.isfinite(self.value)):
            raise ValueError(f"Trial {self.trial.number} is COMPLETE with value {self.value}.")

    @property
    def stored_value(self) -> float | None:
        """What Optuna would store as the trial's value."""
        value = self.value
        if value is None and self.state == TrialState.PRUNED and self.intermediate:
            value = self.intermediate[max(self.intermediate)]
        return None if value is None or math.isnan(value) else float(value)


@dataclass(frozen=True)
class Cursor:
    """How far a reader has come: the last trial id seen, and those then unfinished."""

    last: int = -1
    unfinished: frozenset[int] = frozenset()


def new_worker() -> str:
    """A worker's name that no other process uses: host, process, and a random part."""
    return f"{socket.gethostname()[:100]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
