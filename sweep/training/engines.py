"""Which engine trains a study."""

from __future__ import annotations

from collections.abc import Callable

from sweep.training.experiment import Experiment
from sweep.training.lanes import LanesEngine
from sweep.training.pool import ReferencePool
from sweep.training.schedule import Engine

MAX_SLOTS = 320


def slots_in_flight(trials: int, folds: int) -> int:
    """Half as many slots as members in flight: while one half trains, the other half's trials are
    stored and the next are chosen.
    """
    return min(MAX_SLOTS, max(1, -(-trials * folds // 2)))


def make_engine(
    experiment: Experiment,
    name: str,
    notice: Callable[[str], None],
    memory: int | None = None,
) -> Engine:
    """The engine of this name; `auto` is lanes, compiled where that pays.

    `memory`: bytes that lanes may take, by default a part of what is free.
    """
    if name == "reference":
        return ReferencePool(experiment, notice, memory=memory)
    slots = slots_in_flight(experiment.spec.concurrency, len(experiment.problem.folds))
    return LanesEngine(experiment, slots, notice, "auto", memory)
