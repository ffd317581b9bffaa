"""A trial's penalty as the exact solver needs it: on design weights, all of it by its prox."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sweep.errors import SpecError
from sweep.problem.elastic_net import soft_threshold
from sweep.problem.regularizers import make_regularizer
from sweep.spec import Setting
from sweep.training.experiment import Experiment
from sweep.training.penalty import Custom


class Separable(NamedTuple):
    """sum_j l1_j |w_j| + l2_j / 2 w_j^2: none, l1, l2 and elastic_net. Batched: the same, with
    lanes in front.
    """

    l1: Float[Tensor, "1 P"]
    l2: Float[Tensor, "1 P"]

    @property
    def has_kinks(self) -> bool:
        return bool(self.l1.any())

    def value(self, w: Float[Tensor, "K P"]) -> Float[Tensor, ""]:
        return (self.l1 * w.abs() + self.l2 / 2 * w * w).sum()

    def prox(self, w: Float[Tensor, "*L K P"], step: Tensor) -> Float[Tensor, "*L K P"]:
        return soft_threshold(w, step * self.l1) / (1 + step * self.l2)

    def slope(self, w: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        """The gradient, where it exists; the l1 part's is 0 at 0."""
        return self.l1 * w.sign() + self.l2 * w

    def add_bend(self, hessian: Float[Tensor, "A A"], w: Tensor, active: Tensor) -> None:
        """Adds its Hessian over active coordinates, in place."""
        hessian.diagonal().add_(self.l2.expand(w.shape)[active])

    def active(self, w: Float[Tensor, "K P"]) -> Bool[Tensor, "K P"]:
        """Around which coordinates the penalty is smooth."""
        return (w != 0) | (self.l1 == 0)

    def keep_signs(self, w: Tensor, new: Tensor) -> Tensor:
        """`new`, at 0 where it crossed a kink of the penalty on its way from w."""
        return torch.where((self.l1 > 0) & (w * new < 0), 0.0, new)


def stack_separable(penalties: Sequence[ConvexPenalty]) -> Separable:
    """Of lanes: with an axis in front."""
    return Separable(*(torch.stack(parts) for parts in zip(*penalties, strict=True)))


class Blocks(NamedTuple):
    """A regularizer of whole tensors (group_lasso, or a user's own) on weight and bias."""

    weight: Any
    bias: Any
    n_features: int
    is_custom: bool
    has_kinks: bool = True

    def _parts(self, w: Tensor) -> list[tuple[Any, Tensor]]:
        parts = [(self.weight, w[:, : self.n_features])]
        return parts + [(self.bias, w[:, i]) for i in range(self.n_features, w.shape[1])]

    def value(self, w: Float[Tensor, "K P"]) -> Float[Tensor, ""]:
        terms = [part.value(piece) for part, piece in self._parts(w) if part is not None]
        return torch.stack([*terms, w.new_zeros(())]).sum()

    def prox(self, w: Float[Tensor, "K P"], step: Float[Tensor, ""]) -> Float[Tensor, "K P"]:
        moved = [p if part is None else part.prox(p, step) for part, p in self._parts(w)]
        return torch.cat([p if p.ndim == 2 else p.unsqueeze(1) for p in moved], dim=1)

    def slope(self, w: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        found: Tensor = torch.func.grad(self.value)(w)
        return found

    def add_bend(self, hessian: Float[Tensor, "A A"], w: Tensor, active: Tensor) -> None:
        index = active.flatten().nonzero().squeeze(1)

        def of_active(values: Tensor) -> Tensor:
            return self.value(torch.zeros_like(w).flatten().index_copy(0, index, values).view_as(w))

        hessian += torch.func.jacrev(torch.func.grad(of_active))(w.flatten()[index])

    def active(self, w: Float[Tensor, "K P"]) -> Bool[Tensor, "K P"]:
        free = torch.zeros_like(w, dtype=torch.bool)
        if self.weight is None:
            free[:, : self.n_features] = True
        if self.bias is None:
            free[:, self.n_features :] = True
        return (w != 0) | free

    def keep_signs(self, w: Tensor, new: Tensor) -> Tensor:
        return new


ConvexPenalty = Separable | Blocks


def make_convex_penalty(
    experiment: Experiment, setting: Setting, penalized: tuple[str, ...], columns: int
) -> ConvexPenalty:
    """The penalty of design weights with this many columns: the features, and maybe the bias.

    `penalized`: names of parameters of the linear module. Raises SpecError for a user's
    regularizer that has no prox.
    """
    name, n_features = setting.regularizer, math.prod(experiment.problem.input_shape)
    on_weight, on_bias = "linear.weight" in penalized, "linear.bias" in penalized
    if name in ("none", "l1", "l2", "elastic_net"):
        mask = torch.full((1, columns), float(on_weight), dtype=torch.float64)
        mask[:, n_features:] = float(on_bias)
        share = {"none": 0.0, "l1": 1.0, "l2": 0.0}.get(name, setting.l1_ratio)
        rest = 0.0 if name == "none" else 1.0 - share
        return Separable(setting.lam * share * mask, setting.lam * rest * mask)

    lam = torch.tensor(setting.lam, dtype=torch.float64)
    ratio = torch.tensor(setting.l1_ratio, dtype=torch.float64)

    def make(lam: Tensor, l1_ratio: Tensor) -> Any:
        return make_regularizer(
            name, lam, l1_ratio, directory=experiment.directory, groups=experiment.feature_groups
        )

    part, is_custom = make(lam, ratio), name.startswith("python:")
    if not hasattr(part, "prox"):
        raise SpecError(
            f"regularizer: {name} has no prox(w, step), which train.optimizer fista needs."
        )
    if is_custom:
        part = Custom(lam, ratio, make)
    return Blocks(part if on_weight else None, part if on_bias else None, n_features, is_custom)
