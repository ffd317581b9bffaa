"""What a check measures of a model's tensors, left on the device until it is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

UNKNOWN = -1.0
"""The size of a weight that was not measured."""


class Sizes(NamedTuple):
    """Of the parameters that have a gradient, at `places` in the list: its 2-norm, and max |entry|
    of the parameter itself, UNKNOWN where that was not measured."""

    norms: Float[Tensor, " G"]
    weights: Float[Tensor, " G"]
    places: tuple[int, ...]

    def of_all(self, values: Sequence[float], n_parameters: int, default: float) -> list[float]:
        """One number a parameter, `default` where there was no gradient."""
        whole = [default] * n_parameters
        for place, value in zip(self.places, values, strict=True):
            whole[place] = value
        return whole


@torch.no_grad()
def measure(parameters: Sequence[nn.Parameter]) -> Sizes:
    """The sizes as they are after `backward`; parameters without a gradient are left out.

    Sums of float32 squares, also where the gradient is of 16 bits, so that a norm above 3e38, or
    an entry above 1.8e19, is infinite here; `exact` tells such a one from an infinite entry.
    """
    places = tuple(i for i, p in enumerate(parameters) if p.grad is not None)
    gradients = [_entries(g) for p in parameters if (g := p.grad) is not None]
    weights = _peaks([parameters[i] for i in places])
    return Sizes(_joined(_norms(gradients, 2)), _joined(weights), places)


def _norms(tensors: Sequence[Tensor], order: float) -> list[Tensor]:
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(i)
    found: dict[int, Tensor] = {}
    for (_, dtype), those in kinds.items():
        low = dtype in (torch.float16, torch.bfloat16)
        norms = torch._foreach_norm(
            [tensors[i] for i in those], order, dtype=torch.float32 if low else None
        )
        found.update(zip(those, norms, strict=True))
    return [found[i] for i in range(len(tensors))]


def _peaks(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """max |entry| of each; a table of which a sparse gradient touches few rows is not searched."""
    found = [torch.tensor(UNKNOWN)] * len(parameters)
    elsewhere = []
    for i, p in enumerate(parameters):
        if p.grad is None or p.grad.is_sparse or not p.is_floating_point() or not p.numel():
            continue
        if p.device.type == "cpu":
            # A thirtieth of the price of the norm of order infinity, or of p.abs().amax().
            found[i] = torch.maximum(p.amax(), -p.amin())
        else:
            elsewhere.append(i)
    # Few kernels for all of them, where starting one costs more than its work.
    norms = _norms([parameters[i] for i in elsewhere], math.inf)
    for i, norm in zip(elsewhere, norms, strict=True):
        found[i] = norm
    return found


def fetch(tensors: Sequence[Tensor]) -> list[float]:
    """All their numbers, one tensor after the other, in one copy to the host."""
    return _joined(tensors).tolist()


def exact(parameters: Sequence[nn.Parameter]) -> list[float]:
    """The norms again, each as peak * ||g / peak||: not finite only if an entry is not."""
    norms = []
    for p in parameters:
        if p.grad is None:
            norms.append(0.0)
            continue
        sizes = _entries(p.grad.detach()).abs().double()
        peak = float(sizes.amax()) if sizes.numel() else 0.0
        usable = 0 < peak < math.inf
        norms.append(peak * float((sizes / peak).square().sum().sqrt()) if usable else peak)
    return norms


def _entries(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Their entries in a row, on an accelerator if any of them is there, in the widest format."""
    if not tensors:
        return torch.zeros(0)
    home = max((t.device for t in tensors), key=lambda device: device.type != "cpu")
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return torch.cat([t.detach().to(home, dtype).reshape(-1) for t in tensors])
