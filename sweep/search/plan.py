"""What a run would do, before anything is trained or written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sweep.problem.prepare import Problem
from sweep.search.estimate import Estimate, estimate
from sweep.search.grid import Grid
from sweep.search.space import distributions
from sweep.spec import Choices, FloatRange, IntRange, StudyFile, encode_choice
from sweep.training.device import CPU
from sweep.training.engines import slots_in_flight
from sweep.training.experiment import Experiment
from sweep.training.member import Member
from sweep.training.member import make_plan as plan_member
from sweep.training.memory import machine_bytes, slot_bytes
from sweep.training.preflight import example_params, make_experiment


@dataclass(frozen=True)
class Plan:
    """A study before its first trial. Memory is an estimate in bytes."""

    study: str
    file: str
    source: str
    task: str
    rows: int
    input_shape: tuple[int, ...]
    classes: dict[str, int] | None
    target: tuple[float, float, float] | None
    """Least value, greatest value and standard deviation, of a regression."""
    fold_kind: str
    folds: list[tuple[int, int]]
    """(training rows, scored rows) of each fold."""
    trials: int
    members: int
    grid: int | None
    varies: dict[str, str]
    fixed: dict[str, Any]
    parameters: tuple[int, int]
    steps: tuple[int, int]
    slots: int
    memory: int
    score: str
    direction: str
    sampler: str
    pruner: str
    device: str
    time: Estimate | None
    notices: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values; memory in bytes, times in seconds."""
        return asdict(self)


def make_plan(file: StudyFile, *, timed: bool = False, device: str = "auto") -> Plan:
    """The plan of a study file; raises what a run of it on `device` would refuse it with.

    `timed`: `time` is estimated, by training for a second or two; else it is None.
    """
    spec = file.spec
    experiment, modules = make_experiment(file, device)
    # A run spends it as well, on imports and on the data.
    start = time.process_time()
    problem, direction = experiment.problem, experiment.score.direction
    trials, grid = spec.trials, None
    if spec.sampler == "grid":
        grid = Grid(distributions(spec), seed=spec.seed, enqueue=spec.enqueue).n_trials
        trials = min(trials, grid)
    members = trials * len(problem.folds)
    slots = min(members, slots_in_flight(spec.concurrency, len(problem.folds), experiment.device))
    sizes = [sum(p.numel() for p in module.parameters()) for module in modules]
    memory = _memory(experiment, modules, slots)
    y = problem.y_of(0).double().numpy()
    labels = np.unique(y, return_counts=True) if problem.classes is not None else None
    return Plan(
        study=spec.study,
        file=file.name,
        source=spec.data.source,
        task=problem.kind,
        rows=int(problem.x.shape[1]),
        input_shape=tuple(problem.input_shape),
        classes=None if labels is None else _class_counts(problem, *labels),
        target=None if labels is not None else (float(y.min()), float(y.max()), float(y.std())),
        fold_kind=spec.fold_kind,
        folds=[(len(fold.train), len(fold.test)) for fold in problem.folds],
        trials=trials,
        members=members,
        grid=grid,
        varies={name: knob_text(knob) for name, knob in spec.space().items()},
        fixed=spec.fixed(),
        parameters=(min(sizes), max(sizes)),
        steps=_steps(experiment, modules[0]),
        slots=slots,
        memory=memory,
        score=spec.score_name,
        direction=direction,
        sampler=spec.sampler,
        pruner=spec.pruner,
        device=experiment.device.type,
        time=estimate(experiment, trials, start) if timed else None,
        notices=(*problem.notices, *_room(memory, experiment.device)),
    )


def knob_text(knob: Any) -> str:
    """`1e-06 to 0.1, log`, or `none | l1 | l2`."""
    if isinstance(knob, Choices):
        texts = [encode_choice(choice) for choice in knob.choices]
        return " | ".join("null" if text is None else str(text) for text in texts)
    assert isinstance(knob, FloatRange | IntRange)
    text = f"{knob.low:g} to {knob.high:g}"
    if knob.log:
        text += ", log"
    if knob.step is not None and knob.step != 1:
        text += f", step {knob.step:g}"
    return text


def _class_counts(problem: Problem, labels: Any, counts: Any) -> dict[str, int]:
    assert problem.classes is not None
    pairs = zip(labels, counts, strict=True)
    return {str(problem.classes[int(label)]): int(count) for label, count in pairs}


def _steps(experiment: Experiment, module: nn.Module) -> tuple[int, int]:
    """Fewest and most updates of one member, over the ends of what varies."""
    spec = experiment.spec
    base = example_params(spec)[0]
    found = []
    epochs = _ends(spec.train.epochs)
    batches = _ends(spec.train.batch_size)
    for epoch in epochs:
        for batch in batches:
            params = dict(base)
            if "epochs" in params:
                params["epochs"] = epoch
            if "batch_size" in params:
                params["batch_size"] = batch
            setting = spec.setting(params)
            for fold in range(len(experiment.problem.folds)):
                member = Member(0, fold, setting)
                interact = experiment.traits(setting, module).rows_interact
                plan = plan_member(experiment.problem, spec, member, interact)
                found.append(plan.steps)
    return min(found), max(found)


def _ends(knob: Any) -> list[Any]:
    if isinstance(knob, Choices):
        return [encode_choice(choice) for choice in knob.choices]
    return [knob.low, knob.high] if isinstance(knob, IntRange | FloatRange) else [knob]


def _memory(experiment: Experiment, modules: Sequence[nn.Module], slots: int) -> int:
    """Bytes of the data of all folds and of every slot's largest model, as the engine counts."""
    spec, problem = experiment.spec, experiment.problem
    rows = max(len(fold.train) for fold in problem.folds)
    batches = [rows if b == "full" else min(int(b), rows) for b in _ends(spec.train.batch_size)]
    each = max(
        slot_bytes(module, problem.input_shape, experiment.dtype, optimizer, max(batches))
        for module in modules
        for optimizer in _ends(spec.train.optimizer)
    )
    return int(problem.x.numel() * problem.x.element_size() + slots * each)


def _room(memory: int, device: torch.device) -> list[str]:
    there = machine_bytes(device)
    if memory <= there:
        return []
    what = "This machine" if device == CPU else "The GPU"
    return [
        f"{what} has {there / 1e9:.0f} GB of memory, less than that: fewer members "
        "will train at once. A smaller batch_size needs less."
    ]
