"""A member in a lane: its module, plan and penalty, and how far it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sweep.problem.models import penalized, structure_key
from sweep.training.experiment import Experiment
from sweep.training.member import Member, Plan, learning_rate_at, make_plan
from sweep.training.optimizers import rule_of
from sweep.training.penalty import Penalty, make_penalty

RATES_AHEAD = 512
"""Learning rates are settled for so many steps at a time."""


@dataclass(frozen=True)
class LaneModel:
    """A member ready for a lane: its module (to be copied from), plan and penalty."""

    member: Member
    module: nn.Module
    plan: Plan
    penalized: tuple[str, ...]
    penalty: Penalty
    program_key: Any
    rows_interact: bool
    unstackable: str | None

    @classmethod
    def build(cls, experiment: Experiment, member: Member) -> LaneModel:
        spec, problem, setting = experiment.spec, experiment.problem, member.setting
        module = experiment.start_of(setting, member.fold)
        interact, unstackable = experiment.traits(setting, module)
        plan = make_plan(problem, spec, member, interact)
        names = penalized(module, penalize_bias=spec.penalize_bias, patterns=spec.penalize)
        own = setting.regularizer if setting.regularizer.startswith("python:") else ""
        key = (
            structure_key(setting.model_kind, setting.model),
            rule_of(setting),
            # Rows that a batch is padded with would be seen by batch normalisation.
            plan.batch if interact else setting.batch_size,
            own,
        )
        penalty = make_penalty(experiment, setting)
        return cls(member, module, plan, tuple(names), penalty, key, interact, unstackable)


@dataclass
class Lane:
    """Who has a slot, and how far it is."""

    model: LaneModel
    order: int
    step: int = 0
    best: float = math.inf
    best_epoch: int = -1
    _rates: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    _rates_from: int = 0
    """The learning rates that are settled, and the step of the first."""

    @property
    def epoch(self) -> int:
        return self.step // self.model.plan.steps_per_epoch

    @property
    def step_in_epoch(self) -> int:
        return self.step % self.model.plan.steps_per_epoch

    def rates(self, steps: int) -> NDArray[np.float64]:
        """The learning rates of the next so many steps."""
        begin = self.step - self._rates_from
        if begin + steps > len(self._rates):
            plan = self.model.plan
            end = max(self.step + steps, min(self.step + RATES_AHEAD, plan.steps))
            ahead = np.arange(self.step, end)
            self._rates = learning_rate_at(ahead, self.model.member.setting, plan)
            self._rates_from, begin = self.step, 0
        return self._rates[begin : begin + steps]
