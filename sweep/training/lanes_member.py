"""A member in a lane: how it starts, its plan and penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sweep.training.experiment import Experiment
from sweep.training.member import Member, Plan, make_plan
from sweep.training.optimizers import rule_of
from sweep.training.penalty import Penalty, make_penalty
from sweep.training.start import Start


@dataclass(frozen=True)
class LaneModel:
    """A member ready for a lane: how it starts (to be copied from), its plan and penalty."""

    member: Member
    start: Start
    plan: Plan
    penalty: Penalty
    program_key: Any

    @classmethod
    def build(cls, experiment: Experiment, member: Member) -> LaneModel:
        spec, problem, setting = experiment.spec, experiment.problem, member.setting
        start = experiment.start_of(setting, member.fold)
        interact = start.traits.rows_interact
        plan = make_plan(problem, spec, member, interact)
        own = setting.regularizer if setting.regularizer.startswith("python:") else ""
        key = (
            start.structure,
            rule_of(setting),
            # Rows that a batch is padded with would be seen by batch normalisation.
            plan.batch if interact else setting.batch_size,
            own,
        )
        return cls(member, start, plan, make_penalty(experiment, setting), key)


@dataclass
class Lane:
    """Who has a slot, and the best epoch so far of a member that stops early."""

    model: LaneModel
    best: float = math.inf
    best_epoch: int = -1
