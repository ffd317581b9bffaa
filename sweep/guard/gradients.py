"""The norms of a model's gradients, tensor by tensor, left on the device until they are wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Sizes(NamedTuple):
    """2-norms of the gradients there are; `places` are those parameters' places in the list."""

    norms: Float[Tensor, " G"]
    places: tuple[int, ...]

    def of_all(self, norms: Sequence[float], n_parameters: int) -> list[float]:
        """One number a parameter, 0 where there was no gradient."""
        whole = [0.0] * n_parameters
        for place, norm in zip(self.places, norms, strict=True):
            whole[place] = norm
        return whole


@torch.no_grad()
def measure(parameters: Sequence[nn.Parameter]) -> Sizes:
    """The norms of what `backward` left in `.grad`; parameters without a gradient are left out.

    Sums of float32 squares, also where the gradient is of 16 bits, so that a norm above 3e38, or
    an entry above 1.8e19, is infinite here; `exact` tells such a one from an infinite entry.
    """
    kinds: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[int]]] = {}
    for place, p in enumerate(parameters):
        if p.grad is not None:
            gradient = _entries(p.grad)
            tensors, places = kinds.setdefault((gradient.device, gradient.dtype), ([], []))
            tensors.append(gradient)
            places.append(place)
    norms: list[Tensor] = []
    for (_, dtype), (tensors, _) in kinds.items():
        low = dtype in (torch.float16, torch.bfloat16)
        found = torch._foreach_norm(tensors, 2, dtype=torch.float32 if low else None)
        norms.append(torch.stack(list(found)))
    return Sizes(_joined(norms), tuple(i for _, places in kinds.values() for i in places))


def fetch(tensors: Sequence[Tensor]) -> list[float]:
    """All their numbers, one tensor after the other, in one copy to the host."""
    return _joined([t.detach().reshape(-1) for t in tensors]).tolist()


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
    """One after the other, on an accelerator if any of them is there, in the widest format."""
    if not tensors:
        return torch.zeros(0)
    home = max((t.device for t in tensors), key=lambda device: device.type != "cpu")
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return torch.cat([t.to(home, dtype) for t in tensors])
