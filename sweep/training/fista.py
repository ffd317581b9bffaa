"""The exact solver for linear models: accelerated proximal gradient, and Newton's method after it.

    u = prox_{t R}(v - t * grad f(v))
    v = u + beta * (u - w),  beta = (theta - 1) / theta_next,  w = u
    theta_next = (1 + sqrt(1 + 4 theta^2 t / t_next)) / 2

from Beck and Teboulle (2009), doi:10.1137/080716542. theta starts over whenever <v - u, u - w> > 0
(O'Donoghue and Candes 2015, doi:10.1007/s10208-013-9150-3). The step t follows the curvature
found along the way: it shrinks where <u - v, grad f(u) - grad f(v)> > ||u - v||^2 / t and grows
again where there is room (Scheinberg, Goldfarb and Bai 2014, doi:10.1007/s10208-014-9189-9).

The residual max |u - v| / t is 0 at an optimum and nowhere else. A member is solved where it is
at most `train.tolerance` times the null model's largest gradient. Between iterations, squared
error with an l1 or l2 penalty is solved on the support found so far (`convex_support`). Once
first-order steps have cost as much as Newton's method would, that is tried. This file is the
algorithm for one model; lanes take the same steps with many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sweep.training.convex_loss import FoldLoss, GramLoss, dot
from sweep.training.convex_member import CHECK, ConvexMember, FoldProblem
from sweep.training.convex_newton import Newton, State
from sweep.training.convex_penalty import ConvexPenalty, Separable, stack_separable
from sweep.training.convex_support import solve_on_supports
from sweep.training.member import Failure

GROWTH, SAFETY = 1.2, 0.95
"""How fast a step may grow, and how much of what the curvature allows it takes."""
NEWTON_AIM = 1e-3
"""Of the tolerance: the last of its rounds gains more digits than all before."""


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
    bend = loss.curvature(d, at.v_image, slope, u_image)
    size = dot(d, d)
    allowed = SAFETY * size / bend.clamp(min=1e-300)
    if bend * at.step > size:
        return at._replace(step=torch.minimum(at.step / 2, allowed))
    step = torch.minimum(GROWTH * at.step, torch.maximum(at.step, allowed))
    theta = (1 + torch.sqrt(1 + 4 * at.theta**2 * at.step / step)) / 2
    beta = (at.theta - 1) / theta
    if dot(d, u - at.w) < 0:
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


def guess(tasks: Sequence[ConvexMember], penalty: Separable, at: Point) -> Point:
    """Lanes, with those at their optimum that it takes only one solve to reach."""
    loss = tasks[0].problem.loss
    assert isinstance(loss, GramLoss)
    w, image, residual = solve_on_supports(loss, penalty, at.w, at.step)
    hit = residual <= torch.tensor([task.tolerance for task in tasks], dtype=torch.float64)
    by = hit[:, None, None]
    return at._replace(
        w=torch.where(by, w, at.w),
        w_image=torch.where(by, image, at.w_image),
        residual=torch.where(hit, residual, at.residual),
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


def look(task: ConvexMember, at: Point) -> tuple[Verdict, Point]:
    """What becomes of one model, after a guess where that may help."""
    active = int(torch.count_nonzero(at.w))
    if at.residual > task.tolerance and task.may_guess(active):
        lane = guess([task], stack_separable([task.penalty]), Point(*(x[None] for x in at)))
        at = Point(*(x[0] for x in lane))
    return verdict(task, float(at.residual), active), at


def newton_from(task: ConvexMember, at: Point) -> Newton:
    """Newton's method, starting there."""
    problem = task.problem
    aim = NEWTON_AIM * (task.tolerance - problem.rounding) + problem.rounding
    return Newton(problem.loss, task.penalty, at.w, at.w_image, float(at.step), aim)


def after_newton(task: ConvexMember, newton: Newton, state: State) -> tuple[Point, float, Verdict]:
    """Where the member goes on from, the residual there, and what becomes of it."""
    at = start_point(task.problem, newton.w, newton.step)
    if state is State.SOLVED or newton.residual <= task.tolerance:
        return at, newton.residual, Verdict.SOLVED
    task.effort.newton_failed()
    return at, newton.residual, Verdict.FAILED if task.is_spent else Verdict.GOING


def solve(task: ConvexMember) -> Iterator[Tensor | Failure | None]:
    """Ends with the design weights (K, P) of the optimum, or why there are none; None meanwhile."""
    problem, effort = task.problem, task.effort
    at = start_point(problem, problem.start, problem.first_step)
    while True:
        count = min(CHECK, task.left)
        for _ in range(count):
            at = iterate(problem.loss, task.penalty, at)
        effort.iterated(problem, count)
        found, at = look(task, at)
        residual = float(at.residual)
        if found is Verdict.REFINED:
            newton = newton_from(task, at)
            state = State.GOING
            while state is State.GOING and not task.is_spent:
                yield None
                state = newton.round()
                effort.iterations += 1
            at, residual, found = after_newton(task, newton, state)
        if found is Verdict.SOLVED:
            yield at.w
            return
        if found is Verdict.FAILED:
            yield task.failure(residual)
            return
        yield None
