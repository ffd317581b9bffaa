"""The penalty of one trial, over the parameters it acts on: a part with a gradient, a part with
a proximal step, a part that looks at how the gradient went through time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sweep.problem.regularizers import Vanishing, make_regularizer, split
from sweep.spec import Choices, Setting
from sweep.training.experiment import Experiment


class Penalty(NamedTuple):
    """Regularizers by class, each for one parameter tensor. Batched: the same, holding lanes."""

    smooth: tuple[Any, ...]
    proximal: tuple[Any, ...]
    recurrent: tuple[Vanishing, ...] = ()

    def value(self, parameters: Mapping[str, Tensor], names: Sequence[str]) -> Float[Tensor, ""]:
        """The sum over the named parameters of the part that has a gradient."""
        terms = [part.value(parameters[name]) for part in self.smooth for name in names]
        return torch.stack(terms).sum()

    def prox(self, name: str, u: Tensor, step: Tensor) -> Tensor:
        """The proximal step. A trial has one proximal part; the others are the identity."""
        for part in self.proximal:
            u = part.prox(u, step)
        return u

    def recurrent_value(
        self, weights: Sequence[Tensor], traces: Sequence[tuple[Tensor, Tensor]]
    ) -> Float[Tensor, ""]:
        """The sum over layers, each with its recurrent matrix and its trace (d, slope)."""
        pairs = zip(weights, traces, strict=True)
        terms = [part.value(w, *trace) for w, trace in pairs for part in self.recurrent]
        return torch.stack(terms).sum()


class Custom(NamedTuple):
    """A user's regularizer as a tuple of tensors, whatever object the user's callable makes."""

    lam: Float[Tensor, ""]
    l1_ratio: Float[Tensor, ""]
    make: Callable[[Tensor, Tensor], Any]

    def value(self, w: Tensor) -> Tensor:
        value = self.make(self.lam, self.l1_ratio).value(w)
        if not isinstance(value, Tensor) or value.ndim:
            raise ValueError(f"value(w) returned {_form(value)}, expected a tensor of one number")
        return value

    def prox(self, w: Tensor, step: Tensor) -> Tensor:
        # A clone, because a prox that works in place would overwrite what momentum looks at.
        new = self.make(self.lam, self.l1_ratio).prox(w.clone(), step)
        if not isinstance(new, Tensor) or new.shape != w.shape:
            raise ValueError(f"prox(w, step) returned {_form(new)} for w of shape {tuple(w.shape)}")
        return new


def _form(value: Any) -> str:
    """`shape (2, 3)`, or `a float`."""
    return (
        f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    )


def _parts(experiment: Experiment, name: str, lam: float, l1_ratio: float, mode: str) -> Any:
    """(smooth part, proximal part) of the named regularizer; either may be None."""

    def make(lam: Tensor, l1_ratio: Tensor) -> Any:
        return make_regularizer(
            name, lam, l1_ratio, directory=experiment.directory, groups=experiment.feature_groups
        )

    strength = torch.tensor(lam, dtype=experiment.dtype)
    ratio = torch.tensor(l1_ratio, dtype=experiment.dtype)
    parts = split(make(strength, ratio), mode)
    if name.startswith("python:"):
        wrapped = Custom(strength, ratio, make)
        return tuple(None if part is None else wrapped for part in parts)
    return parts


def make_penalty(experiment: Experiment, setting: Setting) -> Penalty:
    """The penalty of one trial. Where decay is decoupled, `l2` is the optimizer's instead."""
    if setting.regularizer == "none":
        return Penalty((), ())
    if setting.regularizer == "l2" and setting.decoupled_weight_decay:
        return Penalty((), ())
    if setting.regularizer == "vanishing":
        return Penalty((), (), (Vanishing(torch.tensor(setting.lam, dtype=experiment.dtype)),))
    smooth, proximal = _parts(
        experiment, setting.regularizer, setting.lam, setting.l1_ratio, setting.l1
    )
    return Penalty(() if smooth is None else (smooth,), () if proximal is None else (proximal,))


def possible_penalties(
    experiment: Experiment, regularizers: Sequence[str], decoupled: bool
) -> Penalty:
    """Every part that trials with these regularizers may have, each at lambda 0."""
    spec = experiment.spec
    modes = spec.train.l1.choices if isinstance(spec.train.l1, Choices) else [spec.train.l1]
    smooth: dict[type, Any] = {}
    proximal: dict[type, Any] = {}
    for name in regularizers:
        if name in ("none", "vanishing") or (name == "l2" and decoupled):
            continue
        for mode in modes:
            parts = _parts(experiment, name, 0.0, 0.0, mode)
            for part, known in zip(parts, (smooth, proximal), strict=True):
                if part is not None:
                    known.setdefault(type(part), part)
    recurrent = (Vanishing(torch.zeros((), dtype=experiment.dtype)),)
    return Penalty(
        tuple(smooth.values()),
        tuple(proximal.values()),
        recurrent if "vanishing" in regularizers else (),
    )


def aligned(penalty: Penalty, template: Penalty) -> Penalty:
    """The penalty with the template's parts in the template's order; lambda 0 where it has none."""

    def fill(own: tuple[Any, ...], all_parts: tuple[Any, ...]) -> tuple[Any, ...]:
        by_type = {type(part): part for part in own}
        return tuple(by_type.get(type(part), part) for part in all_parts)

    return Penalty(*(fill(own, every) for own, every in zip(penalty, template, strict=True)))
