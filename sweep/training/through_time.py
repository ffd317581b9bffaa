"""How the loss's gradient came back through a recurrent network's steps, for `vanishing`.

The network is called with nudges, zeros added to what goes into each activation: the gradient by a
nudge is the gradient by that activation's input, and costs no second way back. Both engines call
it so; where nothing is asked for there are no nudges, and the call is the plain one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sweep.errors import SpecError
from sweep.problem.recurrent import RNN
from sweep.training.differentiation import value_and_gradient
from sweep.training.penalty import Penalty

Tensors = dict[str, Tensor]


def recurrent_weights(module: nn.Module, penalized: Sequence[str]) -> list[str | None]:
    """For each layer the name of its recurrent matrix, None where it is not penalized.

    Raises SpecError if there is none.
    """
    layers = [
        f"{name}.weight_hh_l0" for name, layer in module.named_modules() if isinstance(layer, RNN)
    ]
    if not set(layers) & set(penalized):
        raise SpecError(
            "regularizer vanishing is for recurrent weights, and penalize leaves them all out: "
            'add "*weight_hh*" to penalize.'
        )
    return [name if name in penalized else None for name in layers]


def make_nudges(module: nn.Module, x: Tensor, penalty: Penalty) -> tuple[Tensor, ...]:
    """Zeros (B, T, H), one a layer; none where the penalty does not look at time."""
    if not penalty.recurrent:
        return ()
    widths = [layer.hidden_size for layer in module.modules() if isinstance(layer, RNN)]
    return tuple(x.new_zeros(*x.shape[:2], width) for width in widths)


def call(
    module: nn.Module, tensors: Tensors | None, x: Tensor, nudges: Sequence[Tensor]
) -> tuple[Any, list[Tensor]]:
    """(outputs, slopes of the activations, one a layer) of the module with these tensors."""
    arguments = (x, nudges) if nudges else (x,)
    result = module(*arguments) if tensors is None else functional_call(module, tensors, arguments)
    return result if nudges else (result, [])


def value(
    penalty: Penalty,
    parameters: Mapping[str, Tensor],
    names: Sequence[str | None],
    d: Sequence[Tensor],
    slopes: Sequence[Tensor],
) -> Tensor:
    """The penalty on `parameters`; d and slopes, one a layer, count as constants."""
    traces = [(d[i], slopes[i].detach()) for i, name in enumerate(names) if name is not None]
    return penalty.recurrent_value([parameters[n] for n in names if n is not None], traces)


def add(
    penalty: Penalty,
    parameters: Tensors,
    names: Sequence[str | None],
    d: Sequence[Tensor],
    slopes: Sequence[Tensor],
    loss: Tensor,
    gradient: Tensors,
) -> tuple[Tensor, Tensors]:
    """(loss, gradient) with the penalty's own added."""
    weights = {name: parameters[name] for name in names if name is not None}
    omega, _, own = value_and_gradient(lambda w: (value(penalty, w, names, d, slopes), ()), weights)
    # At lambda 0 the trace may be anything, also not finite.
    off = penalty.recurrent[0].lam == 0
    more = {n: gradient[n] + torch.where(off, torch.zeros_like(g), g) for n, g in own.items()}
    return loss + omega, {**gradient, **more}
