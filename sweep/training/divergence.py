"""When training has exploded: rules for one model, on the unclipped gradient and the true loss.

A step is bad when its loss or any entry of its gradient is not finite, when the gradient's norm
overflows, when the update leaves a parameter that is not finite, or when loss or norm explode:
stay above growth * max(1, first value) for `patience` steps in a row, or are once SPIKE times
above that. A loss that was STRANDED_GROWTH times the first and then stays at the height of the
first, never clearly below it, for STRANDED_STEPS steps in a row has exploded too: the units died
of it and nothing is learned any more. Growth is relative to the run's own first step: a large
transient that decays to learning is no divergence.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sweep.spec import DivergenceSpec

SPIKE = 1e3
"""A growth this many times the allowed one is an explosion at once: units that die of it may
bring the loss down again, but not the run back."""
STRANDED_GROWTH, STRANDED_STEPS = 1e3, 100
BELOW_FIRST, ABOVE_FIRST = 0.95, 2.0
ONSET = 10.0
"""Above this many times max(1, its first value) the gradient's norm counts as running away: which
tensor was the largest then is remembered."""
RECORD = 100
"""Steps of loss and gradient norm that the flight recorder keeps, and over which a tensor's usual
size is averaged."""
LEAST_SIZE = 0.1
"""Of a tensor smaller than this share of the largest one, as a bias is that starts at 0, growth
counts from there."""


class Reason(StrEnum):
    """Why a run counts as diverged; the value is what the database stores."""

    NONFINITE_LOSS = "nonfinite_loss"
    NONFINITE_GRADIENT = "nonfinite_gradient"
    GRADIENT_EXPLOSION = "gradient_explosion"
    LOSS_EXPLOSION = "loss_explosion"
    NONFINITE_PARAMETER = "nonfinite_parameter"
    NONFINITE_SCORE = "nonfinite_score"

    @property
    def meaning(self) -> str:
        return _MEANING[self]


_MEANING = {
    Reason.NONFINITE_LOSS: "the loss was no longer a finite number",
    Reason.NONFINITE_GRADIENT: "the gradient had entries that were not finite",
    Reason.GRADIENT_EXPLOSION: "the norm of the gradient exploded",
    Reason.LOSS_EXPLOSION: "the loss exploded",
    Reason.NONFINITE_PARAMETER: "a parameter was no longer a finite number",
    Reason.NONFINITE_SCORE: "the score on the fold was not a finite number",
}
CODES = tuple(Reason)
"""A reason's code in tensors is its place here plus one; 0 means all is well."""


class Watch(NamedTuple):
    """What is remembered of one run, of P parameter tensors. Batched: the same, holding lanes.

    `peaks` are those of the step at which the norm began to run away, while it does, else the
    last ones; `bad_peaks` are the last ones, finite or not. `growth` is how many times its usual
    size a tensor has, after the last update before the norm ran away.
    """

    code: Int[Tensor, ""]
    step: Int[Tensor, ""]
    first_loss: Float[Tensor, ""]
    first_norm: Float[Tensor, ""]
    loss_streak: Int[Tensor, ""]
    norm_streak: Int[Tensor, ""]
    stranded: Int[Tensor, ""]
    peaks: Float[Tensor, P]
    bad_peaks: Float[Tensor, P]
    sizes: Float[Tensor, P]
    growth: Float[Tensor, P]
    record: Float[Tensor, "2 R"]


def new_watch(sizes: Float[Tensor, P]) -> Watch:
    """The state before the first step of tensors of these sizes (see `tensor_sizes`)."""
    zero, none = sizes.new_zeros(()), sizes.new_zeros((), dtype=torch.int64)
    return Watch(
        code=none,
        step=none.clone(),
        first_loss=zero,
        first_norm=zero.clone(),
        loss_streak=none.clone(),
        norm_streak=none.clone(),
        stranded=none.clone(),
        peaks=torch.zeros_like(sizes),
        bad_peaks=torch.zeros_like(sizes),
        sizes=sizes.clone(),
        growth=torch.ones_like(sizes),
        record=sizes.new_full((2, RECORD), torch.nan),
    )


def tensor_sizes(parameters: Mapping[str, Tensor]) -> Float[Tensor, P]:
    """max |entry| of each tensor; it is not finite where an entry is not."""
    # A maximum costs a fifth of asking each entry.
    return torch.stack([p.abs().amax() for p in parameters.values()])


def gradient_size(
    gradient: Mapping[str, Tensor],
) -> tuple[Float[Tensor, ""], Float[Tensor, P]]:
    """(norm, peaks): the 2-norm over all entries, and max |entry| of each tensor.

    The norm is taken as peak * ||g / peak||, so that it overflows only when it is truly too
    large for the format; an entry that is not finite shows in its tensor's peak.
    """
    peaks = torch.stack([g.abs().amax() for g in gradient.values()])
    peak = peaks.amax()
    # Below, its reciprocal would overflow, and the squares may as well be zero.
    usual = (peak >= torch.finfo(peak.dtype).tiny) & torch.isfinite(peak)
    scale = torch.where(usual, peak, torch.ones_like(peak))
    # A division costs a processor as much as the rest of this.
    once = scale.reciprocal()
    total = torch.stack([(g * once).square().sum() for g in gradient.values()]).sum()
    return scale * total.sqrt(), peaks


def observe(
    watch: Watch,
    loss: Float[Tensor, ""],
    norm: Float[Tensor, ""],
    peaks: Float[Tensor, P],
    sizes: Float[Tensor, P],
    rules: DivergenceSpec,
) -> Watch:
    """The state after a step; its first bad step is kept, later ones change nothing. `sizes`: of
    the parameters after the update."""
    first = watch.step == 0
    first_loss = torch.where(first, loss.abs(), watch.first_loss)
    first_norm = torch.where(first, norm, watch.first_norm)
    loss_streak, loss_bad = _streak(
        watch.loss_streak, loss.abs(), first_loss, rules.loss_growth, rules.patience
    )
    norm_streak, norm_bad = _streak(
        watch.norm_streak, norm, first_norm, rules.gradient_growth, rules.patience
    )
    stranded = _stranded(watch.stranded, loss.abs(), first_loss)
    if rules.loss_growth is not None:
        loss_bad = loss_bad | (stranded > STRANDED_STEPS)
    entries_finite = torch.isfinite(peaks).all()
    checks = (
        (Reason.NONFINITE_PARAMETER, ~torch.isfinite(sizes).all()),
        (Reason.LOSS_EXPLOSION, loss_bad),
        (Reason.GRADIENT_EXPLOSION, norm_bad | ~torch.isfinite(norm)),
        (Reason.NONFINITE_GRADIENT, ~entries_finite),
        (Reason.NONFINITE_LOSS, ~torch.isfinite(loss)),
    )
    code = torch.zeros_like(watch.code)
    for reason, bad in checks:
        code = torch.where(bad, CODES.index(reason) + 1, code)
    running, bad = watch.code == 0, code != 0
    away = ONSET * first_norm.clamp(min=1.0)
    # Later steps would show what the first tensor to run away has done to the others.
    calm = (norm <= away) | (watch.peaks.amax() <= away)
    steady = running & (norm <= away)
    place = (watch.step % RECORD).reshape(1, 1).expand(2, 1)
    entry = torch.where(running, torch.stack([loss, norm]), watch.record.gather(1, place)[:, 0])
    return Watch(
        code=torch.where(running, code, watch.code),
        # A run's step stays at its first bad one: the updates completed before it.
        step=watch.step + (running & ~bad),
        first_loss=first_loss,
        first_norm=first_norm,
        loss_streak=loss_streak,
        norm_streak=norm_streak,
        stranded=stranded,
        peaks=torch.where(running & entries_finite & calm, peaks, watch.peaks),
        bad_peaks=torch.where(running, peaks, watch.bad_peaks),
        sizes=torch.where(steady, watch.sizes + (sizes - watch.sizes) / RECORD, watch.sizes),
        growth=torch.where(steady, growth_of(sizes, watch.sizes), watch.growth),
        record=watch.record.scatter(1, place, entry.unsqueeze(1)),
    )


def growth_of(sizes: Float[Tensor, P], usual: Float[Tensor, P]) -> Float[Tensor, P]:
    """How many times its usual size each tensor has; see LEAST_SIZE."""
    least = (LEAST_SIZE * usual.amax()).clamp(min=torch.finfo(usual.dtype).tiny)
    return torch.maximum(sizes, least) / torch.maximum(usual, least)


def _streak(
    streak: Tensor, value: Tensor, first: Tensor, growth: float | None, patience: int
) -> tuple[Tensor, Tensor]:
    if growth is None:
        return streak, torch.zeros_like(streak, dtype=torch.bool)
    most = growth * first.clamp(min=1.0)
    streak = torch.where(value > most, streak + 1, torch.zeros_like(streak))
    return streak, (streak >= patience) | (value > SPIKE * most)


def _stranded(stranded: Tensor, loss: Tensor, first: Tensor) -> Tensor:
    """0: no explosion to come back from; 1 + n: since one, n steps in a row near the first loss."""
    exploded = (stranded > 0) | (loss > STRANDED_GROWTH * first.clamp(min=1.0))
    recovered = loss < BELOW_FIRST * first
    near = exploded & (loss <= ABOVE_FIRST * first)
    waiting = torch.where(near, stranded.clamp(min=1) + 1, exploded.to(stranded.dtype))
    return torch.where(recovered, torch.zeros_like(stranded), waiting)
