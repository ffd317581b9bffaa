"""The penalty that keeps a recurrent network's gradient from vanishing or growing on its way back.

Pascanu, Mikolov and Bengio (2013), arXiv 1211.5063, equations 9 and 10.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sweep.problem.elastic_net import scaled

NO_GRADIENT = 1e-10
"""A gradient that came to less than this has no direction worth keeping."""


class Vanishing(NamedTuple):
    """lam * Omega; with d_t = dE/da_t, a_t what goes into the activation at step t,

        Omega = mean over rows and steps of (||d_{t+1} W diag(act'(a_t))|| / ||d_{t+1}|| - 1)^2.

    W is the recurrent matrix. The d and act' count as constants, so that the gradient is that of
    the immediate W alone. The paper sums over steps; the mean, which the authors' own program
    takes too, makes a lambda mean the same at every length. (That program compares the squared
    lengths, where equation 9 has the lengths.) Rows and steps whose d is shorter
    than 1e-10 are left out.
    """

    lam: Float[Tensor, ""]

    def value(
        self, w: Float[Tensor, "H H"], d: Float[Tensor, "B T H"], slope: Float[Tensor, "B T H"]
    ) -> Float[Tensor, ""]:
        after = d[:, 1:]
        before = (after @ w) * slope[:, :-1]
        length = _lengths(after)
        counts = length >= NO_GRADIENT
        ratio = _lengths(before) / torch.where(counts, length, 1.0)
        omega = torch.where(counts, (ratio - 1).square(), 0.0).sum() / counts.sum().clamp(min=1)
        return scaled(self.lam, omega)


def _lengths(d: Float[Tensor, "B t H"]) -> Float[Tensor, "B t"]:
    """||d|| with gradient 0, not NaN, at 0; scaled, so that no square is lost in float32."""
    largest = d.detach().abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    square = (d / scale).square().sum(-1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt()) * scale[..., 0]
