"""Cures of a gradient that is too large, for one model: four ways to clip it.

In this order, each where it is asked for: every entry to [-value, value]; every tensor's norm to
`layer`; the norm of the whole to `norm` and to the `percentile` of the norms seen so far.
Written twice, as the update is: `clip` on tensors, `clip_in_place` on a module's gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sweep.spec import Choices, Setting, TrainSpec

HISTORY = 1000
"""Norms that a percentile is taken of: those of the last so many updates."""
EPS = 1e-6
"""torch's own: a norm is cut to bound * norm / (norm + EPS)."""

Tensors = dict[str, Tensor]


class Clips(NamedTuple):
    """The kinds that a program's step has; what no trial asks for costs nothing."""

    value: bool
    layer: bool
    norm: bool
    percentile: bool


class Bounds(NamedTuple):
    """One trial's bounds; infinite: no such clipping. Batched: the same, holding lanes."""

    value: Float[Tensor, ""]
    layer: Float[Tensor, ""]
    norm: Float[Tensor, ""]
    percentile: Float[Tensor, ""]


def possible_clips(train: TrainSpec) -> Clips:
    """What some trial of the study may ask for."""

    def may_be_set(knob: object) -> bool:
        if isinstance(knob, Choices):
            return any(choice is not None for choice in knob.choices)
        return knob is not None

    knobs = (train.clip_value, train.clip_layer, train.clip_norm, train.clip_percentile)
    return Clips(*map(may_be_set, knobs))


def bounds(setting: Setting, dtype: torch.dtype) -> Bounds:
    """A setting's bounds as tensors."""
    given = (setting.clip_value, setting.clip_layer, setting.clip_norm, setting.clip_percentile)
    numbers = (torch.inf if value is None else value for value in given)
    return Bounds(*(torch.tensor(number, dtype=dtype) for number in numbers))


def new_norms(clips: Clips, dtype: torch.dtype) -> Tensors:
    """No norms seen yet: `arrived`, the oldest first, and the same `sorted`; empty where unused."""
    if not clips.percentile:
        return {}
    none = torch.full((HISTORY,), torch.inf, dtype=dtype)
    return {"arrived": none, "sorted": none.clone()}


def clip(
    gradient: Tensors, norm: Float[Tensor, ""], norms: Tensors, bounds: Bounds, clips: Clips
) -> tuple[Tensors, Tensors]:
    """(clipped gradient, norms seen). `norm` is the 2-norm over all of `gradient`.

    Each tensor by its own norm: Abadi et al. (2016, section 3.1), arXiv 1607.00133. The whole by
    its norm: Pascanu et al. (2013), arXiv 1211.5063. By a percentile of the norms of all updates
    so far, this one included: AutoClip, Seetharaman et al. (2020), arXiv 2007.14469; here of the
    last HISTORY updates.
    """
    if clips.value:
        most = bounds.value
        gradient = {n: torch.minimum(torch.maximum(g, -most), most) for n, g in gradient.items()}
    if clips.layer:
        gradient = {
            n: g * _factor(g.square().sum().sqrt(), bounds.layer) for n, g in gradient.items()
        }
    if not clips.norm and not clips.percentile:
        return gradient, norms
    if clips.value or clips.layer:
        norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
    most = bounds.norm
    if clips.percentile:
        norms = _with(norms, norm)
        asked = torch.isfinite(bounds.percentile)
        found = _percentile(norms["sorted"], torch.where(asked, bounds.percentile, 0.0))
        most = torch.where(asked, torch.minimum(most, found), most)
    factor = _factor(norm, most)
    return {name: g * factor for name, g in gradient.items()}, norms


def _factor(norm: Tensor, most: Tensor) -> Tensor:
    return (most / (norm + EPS)).clamp(max=1.0)


def _with(norms: Tensors, norm: Float[Tensor, ""]) -> Tensors:
    """The norms with one more, and without the oldest. An empty place holds infinity.

    Sorted by moving what stands above the place of the one or the other; sorting anew would cost
    more than the rest of a small model's update.
    """
    arrived, ordered = norms["arrived"], norms["sorted"]
    place = torch.arange(HISTORY, device=ordered.device)
    end = torch.full_like(ordered[:1], torch.inf)
    left = (ordered < arrived[0]).sum()
    ordered = torch.where(place < left, ordered, torch.cat([ordered[1:], end]))
    entered = (ordered < norm).sum()
    moved = torch.where(place == entered, norm, torch.cat([end, ordered[:-1]]))
    return {
        "arrived": torch.cat([arrived[1:], norm.reshape(1)]),
        "sorted": torch.where(place < entered, ordered, moved),
    }


def _percentile(ordered: Float[Tensor, " H"], percentile: Tensor) -> Float[Tensor, ""]:
    """NumPy's: linear between the two nearest ranks of the finite norms."""
    seen = torch.isfinite(ordered).sum().clamp(min=1)
    rank = percentile / 100 * (seen - 1)
    below = rank.floor().to(torch.int64)
    above = torch.minimum(below + 1, seen - 1)
    pair = torch.gather(ordered, 0, torch.stack([below, above]))
    return torch.lerp(pair[0], pair[1], rank - below)


def clip_in_place(parameters: Iterable[nn.Parameter], setting: Setting, norms: list[float]) -> None:
    """The same on the gradients of a module, by torch's own functions; `norms` is added to."""
    parameters = list(parameters)
    if setting.clip_value is not None:
        nn.utils.clip_grad_value_(parameters, setting.clip_value)
    if setting.clip_layer is not None:
        for p in parameters:
            nn.utils.clip_grad_norm_([p], setting.clip_layer)
    most = torch.inf if setting.clip_norm is None else setting.clip_norm
    if setting.clip_percentile is not None:
        norm = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        # After one that is not finite nothing is left to clip.
        if math.isfinite(norm):
            norms[:] = [*norms[1 - HISTORY :], norm]
            most = min(most, float(np.percentile(norms, setting.clip_percentile)))
    if most < torch.inf:
        nn.utils.clip_grad_norm_(parameters, most)
