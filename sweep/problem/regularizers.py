"""Penalties R(w) of one parameter tensor, with lambda inside: value, and prox where there is one.

    prox(w, step) = argmin_u  1/2 sum_i (u_i - w_i)^2 / step_i + value(u)

`step` is a scalar tensor, or a tensor of w's shape: the per-coordinate step of an adaptive
optimizer, which makes this the proximal operator in that diagonal metric. At lambda = 0 the value
is exactly 0 and prox exactly the identity. A batch of penalties is the same tuple holding vectors.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from sweep.errors import SpecError, SweepError
from sweep.problem.elastic_net import L1, L2, ElasticNet
from sweep.problem.group_lasso import FeatureGroupLasso, GroupLasso, feature_groups
from sweep.problem.matrix_penalties import Orthogonal, Spectral
from sweep.problem.plugins import describe, load_object
from sweep.problem.vanishing import Vanishing


@runtime_checkable
class Regularizer(Protocol):
    """Has a value, which enters the loss through its gradient."""

    def value(self, w: Tensor) -> Tensor: ...


@runtime_checkable
class ProximalRegularizer(Regularizer, Protocol):
    """Also has a proximal step, which makes exact zeros."""

    def prox(self, w: Tensor, step: Tensor) -> Tensor: ...


REGULARIZERS = ("l1", "l2", "elastic_net", "group_lasso", "spectral", "orthogonal")
"""Penalties of one parameter tensor; `vanishing` looks into a recurrence instead."""


def make_regularizer(
    name: str,
    lam: Float[Tensor, ""],
    l1_ratio: Float[Tensor, ""],
    *,
    directory: Path,
    groups: Int[Tensor, " D"] | None = None,
) -> Regularizer:
    """The regularizer of this name, or a user's own `python:module:name`.

    `groups` gives group_lasso each input column's group number. A user's callable gets lam, and
    l1_ratio if its signature has it; what it returns must have `value`, and is applied by its
    `prox` if it has one. Raises SpecError if it does not, SweepError if it fails.
    """
    if name == "l1":
        return L1(lam)
    if name == "l2":
        return L2(lam)
    if name == "elastic_net":
        return ElasticNet(lam, l1_ratio)
    if name == "group_lasso":
        return GroupLasso(lam) if groups is None else feature_groups(lam, groups)
    if name == "spectral":
        return Spectral(lam)
    if name == "orthogonal":
        return Orthogonal(lam)
    return _custom(name, lam, l1_ratio, directory)


def _custom(name: str, lam: Tensor, l1_ratio: Tensor, directory: Path) -> Regularizer:
    make = load_object(name, directory)
    if not callable(make):
        raise SpecError(
            f"regularizer: {name} is of type {type(make).__name__}, which cannot be called."
        )
    try:
        arguments = (
            {"l1_ratio": l1_ratio} if "l1_ratio" in inspect.signature(make).parameters else {}
        )
        regularizer = make(lam, **arguments)
    except SweepError:
        raise
    except (Exception, SystemExit) as error:
        raise SweepError(f"regularizer: {name} raised {describe(error)}") from error
    if not callable(getattr(regularizer, "value", None)):
        raise SpecError(
            f"regularizer: {name} returned an object of type {type(regularizer).__name__} without "
            "a method value(w); it needs value, and may have prox(w, step)."
        )
    custom: Regularizer = regularizer
    return custom


def split(regularizer: Any, l1_mode: str) -> tuple[Regularizer | None, ProximalRegularizer | None]:
    """(the part that enters through its gradient, the part that enters through prox).

    The l2 part is smooth, the l1 and group parts are proximal, as is a user's own that has prox;
    with l1_mode `subgradient` everything goes through the gradient.
    """
    if l1_mode == "subgradient" or not hasattr(regularizer, "prox"):
        return regularizer, None
    if isinstance(regularizer, ElasticNet):
        return regularizer.parts
    if isinstance(regularizer, L2):
        return regularizer, None
    return None, regularizer


__all__ = [
    "L1",
    "L2",
    "REGULARIZERS",
    "ElasticNet",
    "FeatureGroupLasso",
    "GroupLasso",
    "Orthogonal",
    "ProximalRegularizer",
    "Regularizer",
    "Spectral",
    "Vanishing",
    "make_regularizer",
    "split",
]
