"""The end of an exact solution: Newton's method on the weights that the proximal steps left.

A proximal step finds out which weights are zero; around those that are not, penalty and loss are
smooth, and Newton's method converges quadratically. Each round takes a proximal step, then one
Newton step on its support, cut where the objective would rise and at 0 where a weight would change
its sign. (Bareilles, Iutzeler and Malick 2023, doi:10.1007/s10107-022-01873-w.)
"""

from __future__ import annotations

from enum import Enum, auto

import torch
from jaxtyping import Float
from torch import Tensor

from sweep.training.convex_loss import FoldLoss
from sweep.training.convex_penalty import ConvexPenalty

MOST_FLOPS = 2e10
"""Of one round; larger problems keep to first-order steps."""
OVERHEAD_FLOPS = 4e7
"""What starting a round costs, in the same coin."""
HALVINGS, STALLS, ROUNDS = 20, 4, 40
ROUNDING = 1e-14
LEAST_SHARE = 2**-5
"""Of a Newton step: where no more of it is any good, the support is not yet the right one."""
DAMPING = 1e-10
"""Of the Hessian's largest diagonal entry, added to all of it where flat directions do no harm:
those in which all classes' weights of a column grow together, and those that end at a kink."""
LEAST_PIVOT = 1e-6
"""Of the largest one: below it the optimum may not be unique, and the step is not determined."""


class State(Enum):
    """What a round came to."""

    GOING = auto()
    SOLVED = auto()
    STUCK = auto()


def newton_flops(loss: FoldLoss, active: int) -> float:
    """Of one round with so many active coordinates."""
    return loss.hessian_flops(active) + active**3 / 3 + 4 * loss.flops + OVERHEAD_FLOPS


class Newton:
    """One model on its way to the optimum. `w` is the best point so far in every state."""

    def __init__(
        self,
        loss: FoldLoss,
        penalty: ConvexPenalty,
        w: Float[Tensor, "K P"],
        image: Tensor,
        step: float,
        tolerance: float,
    ) -> None:
        self.loss, self.penalty, self.tolerance = loss, penalty, tolerance
        self.w, self.image, self._objective = w, image, self._value(w, image)
        self.step, self.residual = step, torch.inf
        self._best, self._stalls, self._rounds = torch.inf, 0, 0

    def round(self) -> State:
        """One proximal and one Newton step. SOLVED where the proximal step moves nothing more
        than `tolerance` times its size.
        """
        self._rounds += 1
        self._identify()
        if self.residual <= self.tolerance:
            return State.SOLVED
        self._stalls = 0 if self.residual < self._best / 2 else self._stalls + 1
        self._best = min(self._best, self.residual)
        if self._stalls == STALLS or self._rounds == ROUNDS:
            return State.STUCK
        base = self.w
        active = self.penalty.active(base)
        count = int(active.sum())
        if count == 0:
            return State.GOING
        if newton_flops(self.loss, count) > MOST_FLOPS:
            return State.STUCK
        direction = self._direction(active)
        if direction is None:
            return State.STUCK
        share = 1.0
        while share >= LEAST_SHARE:
            new = base.clone()
            new[active] += share * direction
            new = self.penalty.keep_signs(base, new)
            if self._goes_to(new):
                return State.GOING
            share /= 2
        return State.STUCK

    def _identify(self) -> None:
        """A proximal step, as long as does not raise the objective."""
        start = self.w
        gradient = self.loss.gradient(self.loss.slope(self.image))
        for _ in range(HALVINGS):
            step = start.new_tensor(self.step)
            new = self.penalty.prox(start - step * gradient, step)
            self.residual = float((start - new).abs().max()) / self.step
            if self._goes_to(new):
                return
            self.step /= 2

    def _goes_to(self, new: Tensor) -> bool:
        """Whether `new` is no worse than `w`, but for rounding, and so the new `w`."""
        image = self.loss.image(new)
        value = self._value(new, image)
        if not value <= self._objective + ROUNDING * abs(self._objective):
            return False
        self.w, self.image, self._objective = new, image, value
        return True

    def _direction(self, active: Tensor) -> Float[Tensor, " A"] | None:
        loss, penalty, w = self.loss, self.penalty, self.w
        slope = (loss.gradient(loss.slope(self.image)) + penalty.slope(w))[active]
        hessian = loss.hessian(self.image, active)
        penalty.add_bend(hessian, w, active)
        diagonal = hessian.diagonal()
        if len(w) > 1 or penalty.has_kinks:
            diagonal += DAMPING * diagonal.max()
        factor, failed = torch.linalg.cholesky_ex(hessian)
        pivots = factor.diagonal()
        if failed or not pivots.min() > LEAST_PIVOT * pivots.max():
            return None
        return -torch.cholesky_solve(slope.unsqueeze(1), factor).squeeze(1)

    def _value(self, w: Tensor, image: Tensor) -> float:
        return float(self.loss.value(w, image) + self.penalty.value(w))
