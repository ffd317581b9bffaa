"""Which engine trains a study."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sweep.training.device import CPU
from sweep.training.experiment import Experiment
from sweep.training.lanes import LanesEngine
from sweep.training.pool import ReferencePool
from sweep.training.schedule import Engine

MAX_SLOTS, MAX_SLOTS_ON_DEVICE = 320, 8192
"""On a CPU more of them train no more in a second; a GPU has room for thousands of small models."""


def slots_in_flight(trials: int, folds: int, device: torch.device = CPU) -> int:
    """Half as many slots as members in flight: while one half trains, the other half's trials are
    stored and the next are chosen. On a GPU, where twice the models hardly take longer, as many.
    """
    members = max(1, trials * folds)
    return min(MAX_SLOTS, -(-members // 2)) if device == CPU else min(MAX_SLOTS_ON_DEVICE, members)


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
    folds = len(experiment.problem.folds)
    slots = slots_in_flight(experiment.spec.concurrency, folds, experiment.device)
    return LanesEngine(experiment, slots, notice, "auto", memory)
