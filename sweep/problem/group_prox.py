"""The proximal step of group lasso where each weight has a step of its own.

One operator, `sweep::group_prox`, so that what is compiled may compute it by a loop of its own
(training/lanes_group_prox.cpp) that stops where a row is done. Imports torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOST_STEPS, ENOUGH = 64, 8
"""Newton's steps at most; a row is done where the next is within so many roundings."""


def group_prox(
    w: Float[Tensor, "N S"], step: Float[Tensor, "N S"], weight: Float[Tensor, " N"]
) -> Float[Tensor, "N S"]:
    """argmin_u sum_i (u_i - w_i)^2 / (2 step_i) + weight * ||u||_2, row by row.

    With c = step * weight, u is w * rho / (rho + c); rho = ||u|| is the root of
    phi(rho) = sum_i (w_i / (rho + c_i))^2 = 1, or 0 if phi(0) <= 1. Newton's iteration on
    1 / sqrt(phi), which is concave, rises to the root from any lower bound, by a share of rho of
    sqrt(phi) - 1 at least (Moré and Sorensen 1983, doi:10.1137/0904038). It starts from
    max(max_i |w_i| - c_i, ||w|| - max c, 0), where phi <= S, so that nothing overflows.
    """
    # Dividing by the largest entry keeps squares in range, also in float32.
    largest = w.abs().amax(1, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    v = w / unit
    limits = torch.finfo(w.dtype)
    # Where nothing holds a weight it stays, and no quotient is 0 / 0.
    c = (step * (weight.unsqueeze(1) / unit)).clamp(min=limits.tiny)
    rho = torch.clamp((v.abs() - c).amax(1, keepdim=True), min=0.0)
    norm = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    rho = torch.maximum(rho, norm - c.amax(1, keepdim=True))
    for _ in range(MOST_STEPS):
        bottom = rho + c
        terms = (v / bottom).square()
        phi, slope = terms.sum(1, keepdim=True), (terms / bottom).sum(1, keepdim=True)
        rise = (phi * (phi.sqrt() - 1) / (slope + limits.tiny)).clamp(min=0.0)
        rho = rho + rise
        # Elsewhere a look would have to wait.
        if w.device.type == "cpu" and not (rise > ENOUGH * limits.eps * rho).any():
            break
    return w * (rho / (rho + c))


def _mapped(
    info: Any, in_dims: tuple[int | None, ...], *given: Tensor
) -> tuple[Float[Tensor, "M N S"], int]:
    """Many models' rows are rows."""
    stacked = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(given, in_dims, strict=True)
    ]
    made: Tensor = GROUP_PROX(*(t.flatten(0, 1) for t in stacked))
    return made.reshape(info.batch_size, -1, made.shape[1]), 0


_NAME = "sweep::group_prox"
torch.library.define(_NAME, "(Tensor w, Tensor step, Tensor weight) -> Tensor")
torch.library.impl(_NAME, "CompositeExplicitAutograd", group_prox)
torch.library.register_fake(_NAME, lambda w, step, weight: w.new_empty(w.shape))
torch.library.register_vmap(_NAME, _mapped)

GROUP_PROX = torch.ops.sweep.group_prox.default
