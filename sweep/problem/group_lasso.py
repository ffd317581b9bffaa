"""Penalties that make whole groups of weights zero together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sweep.problem.elastic_net import scaled
from sweep.problem.group_prox import GROUP_PROX


class GroupLasso(NamedTuple):
    """lam * sum_g sqrt(|g|) * ||w_g||_2, a group being one output unit's incoming weights.

    A group is a row of w.flatten(1); each entry of a vector is its own. The gradient at w_g = 0
    is 0. Yuan and Lin (2006), doi:10.1111/j.1467-9868.2005.00532.x
    """

    lam: Float[Tensor, ""]

    def value(self, w: Float[Tensor, "*w"]) -> Float[Tensor, ""]:
        rows = _rows(w)
        return scaled(self.lam, _norms(rows).sum() * rows.shape[1] ** 0.5)

    def prox(self, w: Float[Tensor, "*w"], step: Tensor) -> Float[Tensor, "*w"]:
        rows = _rows(w)
        root_size = torch.full_like(rows[:, :1], rows.shape[1] ** 0.5)
        steps = step if step.ndim == 0 else _rows(step)
        return _prox_rows(rows, steps, self.lam * root_size).reshape(w.shape)


class FeatureGroupLasso(NamedTuple):
    """lam * sum_g sqrt(|g|) * ||w_g||_2, a group being the weights of some input columns.

    For w (K, D), all K outputs of a group's columns together. `columns` lists each group's
    columns, filled up with D; `place` is where each column stands in it, counted row-major.
    """

    lam: Float[Tensor, ""]
    columns: Int[Tensor, "G S"]
    place: Int[Tensor, " D"]

    def value(self, w: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
        if w.ndim != 2:
            return GroupLasso(self.lam).value(w)
        return scaled(self.lam, (_norms(self._gather(w, 0.0)) * self._root_size(w)[:, 0]).sum())

    def prox(self, w: Float[Tensor, "K D"], step: Tensor) -> Float[Tensor, "K D"]:
        if w.ndim != 2:
            return GroupLasso(self.lam).prox(w, step)
        steps = step if step.ndim == 0 else self._gather(step, 1.0)
        rows = _prox_rows(self._gather(w, 0.0), steps, self.lam * self._root_size(w))
        groups, size = self.columns.shape
        flat = rows.reshape(groups, len(w), size).movedim(1, 0).flatten(1)
        return flat[:, self.place]

    def _gather(self, w: Tensor, fill: float) -> Float[Tensor, "G KS"]:
        wide = torch.cat([w, torch.full_like(w[:, :1], fill)], dim=1)
        return wide[:, self.columns].movedim(0, 1).flatten(1)

    def _root_size(self, w: Tensor) -> Float[Tensor, "G 1"]:
        sizes = (self.columns < w.shape[1]).sum(1, keepdim=True) * len(w)
        return sizes.to(w.dtype).sqrt()


def feature_groups(lam: Tensor, groups: Int[Tensor, " D"]) -> FeatureGroupLasso:
    """From each column's group number, in any numbering."""
    _, number = torch.unique(groups, return_inverse=True)
    members = [torch.nonzero(number == g).flatten() for g in range(int(number.max()) + 1)]
    width = max(len(m) for m in members)
    columns = torch.full((len(members), width), len(groups), dtype=torch.int64)
    place = torch.empty(len(groups), dtype=torch.int64)
    for g, m in enumerate(members):
        columns[g, : len(m)] = m
        place[m] = g * width + torch.arange(len(m))
    return FeatureGroupLasso(lam, columns, place)


def _rows(w: Tensor) -> Float[Tensor, "G S"]:
    return w.reshape(-1, 1) if w.ndim < 2 else w.flatten(1)


def _norms(rows: Float[Tensor, "G S"]) -> Float[Tensor, " G"]:
    """||row||_2 with gradient 0, not NaN, at 0."""
    square = (rows * rows).sum(1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _prox_rows(
    w: Float[Tensor, "G S"], step: Tensor, weight: Float[Tensor, "G 1"]
) -> Float[Tensor, "G S"]:
    """argmin_u sum_i (u_i - w_i)^2 / (2 step_i) + weight * ||u||_2, row by row.

    Scalar step: u = max(1 - step * weight / ||w||, 0) * w. Else the root of an equation.
    """
    if step.ndim:
        made: Tensor = GROUP_PROX(w, step, weight.squeeze(1))
        return made
    # Dividing by the largest entry keeps squares in range, also in float32.
    largest = w.abs().amax(1, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    norm, c = torch.linalg.vector_norm(w / unit, dim=1, keepdim=True), step * weight / unit
    return w * torch.where(norm > c, 1 - c / norm, 0.0)
