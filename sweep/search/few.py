"""A part of a study's trials that stands for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

BEST = 25
"""TPE takes so many trials for good at most, and all others for bad."""
LATEST = 256
"""About so many of the latest trials are always there."""
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


class Few:
    """At most `most` finished trials, and those that have not finished.

    TPE goes through all trials that it is shown for each choice; shown these, a choice costs no
    more in a study of 5,000 trials than in one of 500. Its good trials stay the same, and the
    density of the bad ones is estimated from fewer.

    Of n finished trials, n > most, the last 1 to LATEST are there, and of those before them (a
    multiple of LATEST) the BEST, as TPE ranks them, and as many more as there is room for, evenly
    spread. So which ones they are follows from the trials alone; what is remembered saves time.
    """

    def __init__(self, most: int) -> None:
        assert most > BEST + LATEST
        self.most = most
        self._old: tuple[tuple[str, int, int], list[FrozenTrial]] | None = None

    def of(self, study: str, trials: Sequence[FrozenTrial], sign: float) -> Sequence[FrozenTrial]:
        """`trials` are in the order of their numbers; the least sign * value is the best."""
        finished = [trial for trial in trials if trial.state not in _UNFINISHED]
        if len(finished) <= self.most:
            return trials
        n_old = (len(finished) - 1) // LATEST * LATEST
        # No trial takes its result back, so these say which they are.
        key = (study, n_old, finished[n_old - 1].number)
        if self._old is None or self._old[0] != key:
            self._old = key, self._choose(finished[:n_old], sign)
        others = [trial for trial in trials if trial.state in _UNFINISHED]
        return sorted([*self._old[1], *finished[n_old:], *others], key=lambda trial: trial.number)

    def _choose(self, old: list[FrozenTrial], sign: float) -> list[FrozenTrial]:
        ranked = sorted(range(len(old)), key=lambda i: rank(old[i], sign))
        rest = sorted(ranked[BEST:])
        spread = np.linspace(0, len(rest) - 1, min(len(rest), self.most - LATEST - BEST))
        return [old[i] for i in (*ranked[:BEST], *(rest[int(at)] for at in spread.round()))]


def rank(trial: FrozenTrial, sign: float) -> tuple[float, float]:
    """From good to bad as TPE has it: what is complete by its value; what was pruned by how far it
    came, and by its last value; then the rest.
    """
    if trial.state is TrialState.COMPLETE and trial.value is not None:
        return -math.inf, sign * trial.value
    if trial.state is TrialState.PRUNED and trial.intermediate_values:
        step, value = max(trial.intermediate_values.items())
        return -step, math.inf if math.isnan(value) else sign * value
    return math.inf, math.inf
