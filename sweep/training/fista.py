"""The exact solver for linear models: accelerated proximal gradient, and Newton's method after it.

    u = prox_{t R}(v - t * grad f(v))
    v = u + beta * (u - w),  beta = (theta - 1) / theta_next,  w = u
    theta_next = (1 + sqrt(1 + 4 theta^2 t / t_next)) / 2

from Beck and Teboulle (2009), doi:10.1137/080716542. theta starts over whenever <v - u, u - w> > 0
(O'Donoghue and Candes 2015, doi:10.1007/s10208-013-9150-3). The step t follows the curvature
found along the way: it shrinks where <u - v, grad f(u) - grad f(v)> > ||u - v||^2 / t and grows
again where there is room (Scheinberg, Goldfarb and Bai 2014, doi:10.1007/s10208-014-9189-9).

The residual max |u - v| / t is 0 at an optimum and nowhere else. A member is solved where it is
at most `train.tolerance` times the null model's largest gradient. Once first-order steps have cost
as much as Newton's method would, that is tried. This file is the algorithm for one model; lanes
take the same steps with many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sweep.problem.models import penalized
from sweep.training.convex_loss import Design, FoldLoss, make_loss
from sweep.training.convex_newton import MOST_FLOPS, Newton, State, newton_flops
from sweep.training.convex_penalty import ConvexPenalty, make_convex_penalty
from sweep.training.divergence import Reason
from sweep.training.experiment import Experiment
from sweep.training.member import Failure, Member

CHECK = 10
"""Iterations between two looks at the residual."""
GROWTH, SAFETY = 1.2, 0.95
"""How fast a step may grow, and how much of what the curvature allows it takes."""
ITERATION_FLOPS = 4e5
"""What starting an iteration costs beside its arithmetic."""
NEWTON_AIM = 1e-3
"""Of the tolerance: the last of its rounds gains more digits than all before."""
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
        bend = float(loss.curvature(d, there - image, loss.slope(there) - slope))
        step = float((d * d).sum()) / bend if bend > 0 else 1.0
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

    @property
    def left(self) -> int:
        """Iterations that it may still take."""
        return self.member.setting.epochs - self.effort.iterations

    @property
    def is_spent(self) -> bool:
        return self.left <= 0

    def newton(self, at: Point) -> Newton:
        loss, step = self.problem.loss, float(at.step)
        aim = NEWTON_AIM * (self.tolerance - self.problem.rounding) + self.problem.rounding
        return Newton(loss, self.penalty, at.w, at.w_image, step, aim)

    def after_newton(self, newton: Newton, state: State) -> tuple[Point, float, Verdict]:
        """Where it goes on from, the residual there, and what becomes of it."""
        at = start_point(self.problem, newton.w, newton.step)
        if state is State.SOLVED or newton.residual <= self.tolerance:
            return at, newton.residual, Verdict.SOLVED
        self.effort.newton_failed()
        return at, newton.residual, Verdict.FAILED if self.is_spent else Verdict.GOING

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
        spec, setting = self.experiment.spec, member.setting
        has_bias = bool(setting.model["bias"])
        if has_bias not in self._names:
            module = self.experiment.build_model(setting, member.fold)
            self._names[has_bias] = tuple(
                penalized(module, penalize_bias=spec.penalize_bias, patterns=spec.penalize)
            )
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


class Point(NamedTuple):
    """Between two iterations. Batched: the same, with lanes in front."""

    w: Float[Tensor, "K P"]
    w_image: Tensor
    v: Float[Tensor, "K P"]
    v_image: Tensor
    theta: Float[Tensor, ""]
    step: Float[Tensor, ""]
    residual: Float[Tensor, ""]


def start_point(problem: FoldProblem, w: Float[Tensor, "K P"], step: float) -> Point:
    """At rest at w."""
    image = problem.loss.image(w)
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (1.0, step, torch.inf))
    return Point(w, image, w, image, *numbers)


def iterate(loss: FoldLoss, penalty: ConvexPenalty, at: Point) -> Point:
    """One iteration of one model; a step that proves too long is only shortened."""
    slope = loss.slope(at.v_image)
    u = penalty.prox(at.v - at.step * loss.gradient(slope), at.step)
    d, u_image = u - at.v, loss.image(u)
    bend = loss.curvature(d, u_image - at.v_image, loss.slope(u_image) - slope)
    size = (d * d).sum()
    allowed = SAFETY * size / bend.clamp(min=1e-300)
    if bend * at.step > size:
        return at._replace(step=torch.minimum(at.step / 2, allowed))
    step = torch.minimum(GROWTH * at.step, torch.maximum(at.step, allowed))
    theta = (1 + torch.sqrt(1 + 4 * at.theta**2 * at.step / step)) / 2
    beta = (at.theta - 1) / theta
    if (d * (u - at.w)).sum() < 0:
        theta, beta = torch.ones_like(theta), torch.zeros_like(beta)
    return Point(
        w=u,
        w_image=u_image,
        v=u + beta * (u - at.w),
        v_image=u_image + beta * (u_image - at.w_image),
        theta=theta,
        step=step,
        residual=d.abs().max() / at.step,
    )


class Verdict(Enum):
    """What becomes of a member after some iterations."""

    GOING = auto()
    SOLVED = auto()
    REFINED = auto()
    FAILED = auto()


def verdict(task: ConvexMember, residual: float, active: int) -> Verdict:
    """Whether it is at the optimum, goes to Newton's method, or has failed."""
    if residual <= task.tolerance:
        # Where Newton's method once came too early, iterations are many and far from exact.
        again = task.uses_newton and task.effort.patience > 1 and not task.is_spent
        return Verdict.REFINED if again else Verdict.SOLVED
    if math.isnan(residual):
        return Verdict.FAILED
    if task.is_spent:
        return Verdict.FAILED
    due = task.uses_newton and task.effort.newton_is_due(task.problem, active)
    return Verdict.REFINED if due else Verdict.GOING


def solve(task: ConvexMember) -> Iterator[Tensor | Failure | None]:
    """Ends with the design weights (K, P) of the optimum, or why there are none; None meanwhile."""
    problem, effort = task.problem, task.effort
    at = start_point(problem, problem.start, problem.first_step)
    while True:
        count = min(CHECK, task.left)
        for _ in range(count):
            at = iterate(problem.loss, task.penalty, at)
        effort.iterated(problem, count)
        residual = float(at.residual)
        found = verdict(task, residual, int(torch.count_nonzero(at.w)))
        if found is Verdict.REFINED:
            newton = task.newton(at)
            state = State.GOING
            while state is State.GOING and not task.is_spent:
                yield None
                state = newton.round()
                effort.iterations += 1
            at, residual, found = task.after_newton(newton, state)
        if found is Verdict.SOLVED:
            yield at.w
            return
        if found is Verdict.FAILED:
            yield task.failure(residual)
            return
        yield None
