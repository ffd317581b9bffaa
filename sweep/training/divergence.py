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

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sweep.spec import DivergenceSpec
from sweep.training.member import Failure, finite

SPIKE = 1e3
"""A growth this many times the allowed one is an explosion at once: units that die of it may
bring the loss down again, but not the run back."""
STRANDED_GROWTH, STRANDED_STEPS = 1e3, 100
BELOW_FIRST, ABOVE_FIRST = 0.95, 2.0
RECORD = 100
"""Steps of loss and gradient norm that the flight recorder keeps."""


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
    """What is remembered of one run, of P parameter tensors. Batched: the same, holding lanes."""

    code: Int[Tensor, ""]
    step: Int[Tensor, ""]
    first_loss: Float[Tensor, ""]
    first_norm: Float[Tensor, ""]
    loss_streak: Int[Tensor, ""]
    norm_streak: Int[Tensor, ""]
    stranded: Int[Tensor, ""]
    peaks: Float[Tensor, P]
    bad_peaks: Float[Tensor, P]
    record: Float[Tensor, "R 2"]


def new_watch(n_tensors: int, dtype: torch.dtype) -> Watch:
    """The state before the first step."""
    zero, none = torch.zeros((), dtype=dtype), torch.zeros((), dtype=torch.int64)
    return Watch(
        code=none,
        step=none.clone(),
        first_loss=zero,
        first_norm=zero.clone(),
        loss_streak=none.clone(),
        norm_streak=none.clone(),
        stranded=none.clone(),
        peaks=torch.zeros(n_tensors, dtype=dtype),
        bad_peaks=torch.zeros(n_tensors, dtype=dtype),
        record=torch.full((RECORD, 2), torch.nan, dtype=dtype),
    )


def gradient_size(
    gradient: Mapping[str, Tensor],
) -> tuple[Float[Tensor, ""], Float[Tensor, P]]:
    """(norm, peaks): the 2-norm over all entries, and max |entry| of each tensor.

    The norm is taken as peak * ||g / peak||, so that it overflows only when it is truly too
    large for the format; an entry that is not finite shows in its tensor's peak.
    """
    peaks = torch.stack([g.abs().amax() for g in gradient.values()])
    peak = peaks.amax()
    scale = torch.where((peak > 0) & torch.isfinite(peak), peak, torch.ones_like(peak))
    total = torch.stack([(g / scale).square().sum() for g in gradient.values()]).sum()
    return scale * total.sqrt(), peaks


def observe(
    watch: Watch,
    loss: Float[Tensor, ""],
    norm: Float[Tensor, ""],
    peaks: Float[Tensor, P],
    parameters_finite: Bool[Tensor, ""],
    rules: DivergenceSpec,
) -> Watch:
    """The state after a step; its first bad step is kept, later ones change nothing."""
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
        (Reason.NONFINITE_PARAMETER, ~parameters_finite),
        (Reason.LOSS_EXPLOSION, loss_bad),
        (Reason.GRADIENT_EXPLOSION, norm_bad | ~torch.isfinite(norm)),
        (Reason.NONFINITE_GRADIENT, ~entries_finite),
        (Reason.NONFINITE_LOSS, ~torch.isfinite(loss)),
    )
    code = torch.zeros_like(watch.code)
    for reason, bad in checks:
        code = torch.where(bad, CODES.index(reason) + 1, code)
    running, bad = watch.code == 0, code != 0
    slot = torch.arange(RECORD, device=loss.device) == watch.step % RECORD
    entry = torch.stack([loss, norm])
    return Watch(
        code=torch.where(running, code, watch.code),
        # A run's step stays at its first bad one: the updates completed before it.
        step=watch.step + (running & ~bad),
        first_loss=first_loss,
        first_norm=first_norm,
        loss_streak=loss_streak,
        norm_streak=norm_streak,
        stranded=stranded,
        peaks=torch.where(running & entries_finite, peaks, watch.peaks),
        bad_peaks=torch.where(running, peaks, watch.bad_peaks),
        record=torch.where(running & slot.unsqueeze(-1), entry, watch.record),
    )


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


def diagnose(watch: Watch, names: Sequence[str], fold: int, steps_per_epoch: int) -> Failure:
    """The failure of a run whose watch holds a reason."""
    reason = CODES[int(watch.code) - 1]
    step = int(watch.step)
    # A score is taken after the epoch's last update, whose loss and norm are the last there are.
    last = step - 1 if reason is Reason.NONFINITE_SCORE else step
    epoch = last // steps_per_epoch
    losses, norms = recorded(watch, last_step=last)
    layer = _layer(watch, names)
    loss, norm = float(losses[-1]), float(norms[-1])
    return Failure(
        kind="divergence",
        reason=reason.value,
        fold=fold,
        epoch=epoch,
        step=step,
        layer=layer,
        loss=finite(loss),
        grad_norm=finite(norm),
        message=describe(reason, fold, epoch, step, layer, losses, norms),
        losses=tuple(finite(float(v)) for v in losses),
        grad_norms=tuple(finite(float(v)) for v in norms),
    )


def recorded(watch: Watch, last_step: int) -> tuple[list[float], list[float]]:
    """The last steps up to `last_step` of loss and gradient norm, oldest first."""
    steps = range(max(0, last_step - RECORD + 1), last_step + 1)
    rows = [watch.record[s % RECORD].tolist() for s in steps]
    return [r[0] for r in rows], [r[1] for r in rows]


def _layer(watch: Watch, names: Sequence[str]) -> str:
    """The tensor that blew up: the first not finite if others still are, else the largest."""
    broken = ~torch.isfinite(watch.bad_peaks)
    if broken.any() and not broken.all():
        return names[int(broken.to(torch.int64).argmax())]
    largest = watch.peaks if broken.all() else watch.bad_peaks
    return names[int(largest.argmax())]


def describe(
    reason: Reason,
    fold: int,
    epoch: int,
    step: int,
    layer: str | None,
    losses: Sequence[float],
    norms: Sequence[float],
) -> str:
    """One sentence a user can act on."""
    where = f"in fold {fold} at step {step} (epoch {epoch})"
    tensor = f", largest in {layer}" if layer else ""
    if reason is Reason.LOSS_EXPLOSION and losses[-1] < STRANDED_GROWTH:
        return (
            f"the loss exploded and training never came back: {STRANDED_STEPS} steps later it is "
            f"{losses[-1]:.3g}, no better than at the start ({where})"
        )
    growing = [n for n in norms if n > 0 and torch.isfinite(torch.tensor(n))]
    grown = ""
    if len(growing) >= 2 and growing[-1] > growing[0]:
        rate = (growing[-1] / growing[0]) ** (1 / (len(growing) - 1))
        grown = f"; the gradient norm grew {rate:.3g}x a step over {len(growing)} steps"
    return f"{reason.meaning} {where}{tensor}{grown}"
