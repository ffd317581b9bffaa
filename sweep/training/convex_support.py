"""The end of an exact solution where one solve is enough: squared error and weights with kinks.

    (G_SS + diag(l2_S)) w_S = c_S - l1_S * sign(w_S),  w = 0 off S

gives the optimum if S and the signs are those of the optimum. Proximal steps find them long
before they have found the weights, so both are guessed from a point on the way, and the residual
at w tells whether the guess was right: if not, nothing has changed.
(Osborne, Presnell and Turlach 2000, doi:10.1093/imanum/20.3.389; that the support is found after
finitely many steps: Hale, Yin and Zhang 2008, doi:10.1137/070698920.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sweep.training.convex_loss import GramLoss
from sweep.training.convex_newton import LEAST_PIVOT
from sweep.training.convex_penalty import Separable

NARROW, WIDER = 8, 1.2
"""Supports up to so much wider than the narrowest are padded and solved together."""
MOST_ENTRIES = 2**22
"""Of the matrices of one such batch."""


def solve_flops(loss: GramLoss, active: int) -> float:
    """What one guess costs, as a product of matrices would: small factorisations are slower."""
    return 2.0 * active**3 + 30.0 * active**2 + 4 * loss.flops


def solve_on_supports(
    loss: GramLoss, penalty: Separable, w: Float[Tensor, "L 1 P"], step: Float[Tensor, " L"]
) -> tuple[Float[Tensor, "L 1 P"], Tensor, Float[Tensor, " L"]]:
    """(weights, their image, the residual there) of lanes, each on the support of its w.

    The residual is NaN where the support does not determine the weights. `penalty` holds lanes.
    """
    active = penalty.active(w)[:, 0]
    right = (loss.c - penalty.l1 * w.sign())[:, 0]
    l2 = penalty.l2[:, 0]
    found = torch.zeros_like(right)
    for lanes in _alike(active.sum(1)):
        found[lanes] = _solve(loss.gram, right[lanes], l2[lanes], active[lanes])
    new = found.unsqueeze(1)
    image = loss.image(new)
    by = step[:, None, None]
    moved = new - penalty.prox(new - by * loss.gradient(loss.slope(image)), by)
    return new, image, moved.abs().amax((1, 2)) / step


def _alike(width: Int[Tensor, " L"]) -> Iterator[Int[Tensor, " l"]]:
    """Lanes with supports of about the same size, some at a time."""
    width, order = width.sort()
    sizes = width.tolist()
    begin = 0
    while begin < len(sizes):
        most, end = max(sizes[begin] + NARROW, WIDER * sizes[begin]), begin + 1
        while end < len(sizes) and sizes[end] <= most:
            if (end + 1 - begin) * sizes[end] ** 2 > MOST_ENTRIES:
                break
            end += 1
        yield order[begin:end]
        begin = end


def _solve(
    gram: Float[Tensor, "P P"],
    right: Float[Tensor, "l P"],
    l2: Float[Tensor, "l P"],
    active: Bool[Tensor, "l P"],
) -> Float[Tensor, "l P"]:
    found = torch.zeros_like(right)
    width = active.sum(1)
    widest = int(width.max())
    if widest == 0:
        return found
    lane, column = active.nonzero(as_tuple=True)
    place = torch.arange(len(lane)) - (width.cumsum(0) - width)[lane]
    columns = torch.zeros(len(right), widest, dtype=torch.int64)
    columns[lane, place] = column
    # Places that a narrower support leaves over have a row of the identity; what is above the
    # diagonal is not looked at.
    over = torch.arange(widest) >= width.unsqueeze(1)
    entries = columns.unsqueeze(2) * len(gram) + columns.unsqueeze(1)
    hessian = gram.view(-1).index_select(0, entries.view(-1)).view(entries.shape)
    hessian.masked_fill_(over.unsqueeze(2), 0.0)
    hessian.diagonal(dim1=1, dim2=2).add_(l2.gather(1, columns).masked_fill(over, 1.0))
    factor, failed = torch.linalg.cholesky_ex(hessian)
    weights = torch.cholesky_solve(right.gather(1, columns).unsqueeze(2), factor).squeeze(2)
    found[lane, column] = weights[lane, place]
    pivots = factor.diagonal(dim1=1, dim2=2)
    pivots = torch.where(over, pivots[:, :1], pivots)
    sound = (failed == 0) & (pivots.amin(1) > LEAST_PIVOT * pivots.amax(1))
    return torch.where(sound.unsqueeze(1), found, torch.nan)
