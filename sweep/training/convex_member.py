"""A member of the exact solver: its fold's loss, its penalty, and how far it has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sweep.training.convex_loss import Design, FoldLoss, GramLoss, dot, make_loss
from sweep.training.convex_newton import MOST_FLOPS, newton_flops
from sweep.training.convex_penalty import ConvexPenalty, Separable, make_convex_penalty
from sweep.training.convex_support import solve_flops
from sweep.training.divergence import Reason
from sweep.training.experiment import Experiment
from sweep.training.member import Failure, Member

CHECK = 10
"""Iterations between two looks at the residual."""
ITERATION_FLOPS = 4e5
"""What starting an iteration costs beside its arithmetic."""
NEWTON_SHARE = 1.0
"""Of a round's flops that first-order steps must have cost before it is tried."""


@dataclass(frozen=True)
class FoldProblem:
    """What the trials on one fold share."""

    design: Design
    loss: FoldLoss
    start: Float[Tensor, "K P"]
    scale: float
    """The null model's largest gradient: of l1, the least lambda at which no weight is left."""
    rounding: float
    first_step: float

    @classmethod
    def build(cls, experiment: Experiment, fold: int, bias: str) -> FoldProblem:
        """`bias`: `none`, `free` or `penalized`."""
        design = Design(experiment, fold, bias)
        loss = make_loss(design)
        w = design.start(bias == "free")
        image = loss.image(w)
        slope = loss.slope(image)
        gradient = loss.gradient(slope)
        scale = float(gradient[:, : design.n_features].abs().max())
        # The curvature along the gradient, by a difference short enough to stay there.
        d = gradient * (1e-3 / max(1e-300, float(gradient.abs().max())))
        there = loss.image(w + d)
        bend = float(loss.curvature(d, image, slope, there))
        step = float(dot(d, d)) / bend if bend > 0 else 1.0
        rounding = 4 * torch.finfo(torch.float64).eps * float(loss.noise.max())
        return cls(design, loss, w, scale, rounding, step)


@dataclass
class Effort:
    """How far a member is, and whether Newton's method should be tried now."""

    iterations: int = 0
    spent: float = 0.0
    patience: float = 1.0

    def iterated(self, problem: FoldProblem, count: int) -> None:
        self.iterations += count
        self.spent += count * (problem.loss.flops + ITERATION_FLOPS)

    def newton_is_due(self, problem: FoldProblem, active: int) -> bool:
        cost = newton_flops(problem.loss, active)
        return cost <= MOST_FLOPS and self.spent >= NEWTON_SHARE * self.patience * cost

    def newton_failed(self) -> None:
        self.spent, self.patience = 0.0, 1.5 * self.patience


@dataclass
class ConvexMember:
    """A member with all that its solution depends on."""

    member: Member
    problem: FoldProblem
    penalty: ConvexPenalty
    key: tuple[int, str, str]
    """Members with equal keys may be stacked."""
    names: tuple[str, ...]
    effort: Effort = field(default_factory=Effort)

    @property
    def tolerance(self) -> float:
        return self.member.setting.tolerance * self.problem.scale + self.problem.rounding

    @property
    def uses_newton(self) -> bool:
        # Where a user's penalty is smooth, and what its value leaves out, only its author knows.
        return not self.member.setting.regularizer.startswith("python:")

    def may_guess(self, active: int) -> bool:
        """Whether one solve could end it, and costs no more than the iterations between looks."""
        loss = self.problem.loss
        if not (isinstance(loss, GramLoss) and isinstance(self.penalty, Separable)):
            return False
        return solve_flops(loss, active) <= CHECK * (loss.flops + ITERATION_FLOPS)

    @property
    def left(self) -> int:
        """Iterations that it may still take."""
        return self.member.setting.epochs - self.effort.iterations

    @property
    def is_spent(self) -> bool:
        return self.left <= 0

    def failure(self, residual: float) -> Failure:
        """Why there is no optimum: the weights overflowed, or the iterations are used up."""
        setting, scale, steps = self.member.setting, self.problem.scale, self.effort.iterations
        fold = self.member.fold
        if math.isnan(residual):
            message = f"linear.weight is not finite within the first {steps:,} iterations"
            reason = Reason.NONFINITE_PARAMETER.value
            return Failure("divergence", reason, fold, steps, steps, message, "linear.weight")
        message = (
            f"after {steps:,} iterations the optimality conditions are off by "
            f"{residual / scale if scale else residual:.1e} of the null model's largest gradient, "
            f"train.tolerance is {setting.tolerance:g}; a larger train.epochs or "
            "train.tolerance, or some l2 penalty, would help"
        )
        return Failure("error", "not_converged", fold, steps, steps, message)


class ConvexMembers:
    """Makes convex members; folds are prepared once, for all trials."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._folds: dict[tuple[int, str], FoldProblem] = {}
        self._names: dict[bool, tuple[str, ...]] = {}

    def make(self, member: Member) -> ConvexMember:
        setting = member.setting
        has_bias = bool(setting.model["bias"])
        if has_bias not in self._names:
            module = self.experiment.build_model(setting, member.fold)
            self._names[has_bias] = self.experiment.penalized(module)
        names, name = self._names[has_bias], setting.regularizer
        bias = "free" if has_bias else "none"
        if has_bias and name != "none" and "linear.bias" in names:
            bias = "penalized"
        if (member.fold, bias) not in self._folds:
            self._folds[member.fold, bias] = FoldProblem.build(self.experiment, member.fold, bias)
        problem = self._folds[member.fold, bias]
        columns = problem.start.shape[1]
        penalty = make_convex_penalty(self.experiment, setting, names, columns)
        family = "separable" if name in ("none", "l1", "l2", "elastic_net") else name
        return ConvexMember(member, problem, penalty, (member.fold, bias, family), names)
