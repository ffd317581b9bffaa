"""What a run that diverged says for itself: where, from which layer, how, and what to change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sweep.spec import Setting
from sweep.training.advice import Recipe, advise
from sweep.training.divergence import (
    CODES,
    ONSET,
    RECORD,
    STRANDED_STEPS,
    Reason,
    Watch,
)
from sweep.training.member import Failure, Member, Plan, finite, learning_rate_at
from sweep.training.optimizers import decoupled_decay

GROWN = 2.0
"""A tensor has grown above this many times its usual size."""


def diagnose(watch: Watch, names: Sequence[str], member: Member, plan: Plan) -> Failure:
    """The failure of a member whose watch holds a reason."""
    reason, step = CODES[int(watch.code) - 1], int(watch.step)
    last = last_step(reason, step)
    epoch = last // plan.steps_per_epoch
    losses, norms = recorded(watch, last)
    layer = first_to_blow_up(watch, names)
    steps = np.arange(last - len(norms) + 1, last + 1)
    recipe = make_recipe(member.setting, learning_rate_at(steps, member.setting, plan).tolist())
    where = f"in fold {member.fold} at step {step} (epoch {epoch})"
    return Failure(
        kind="divergence",
        reason=reason.value,
        fold=member.fold,
        epoch=epoch,
        step=step,
        layer=layer,
        loss=finite(losses[-1]),
        grad_norm=finite(norms[-1]),
        message=describe(watch, where, layer, losses),
        advice=advise(reason.value, layer, norms, recipe, float(watch.first_norm)),
        losses=tuple(map(finite, losses)),
        grad_norms=tuple(map(finite, norms)),
    )


def last_step(reason: Reason, step: int) -> int:
    """The last step with a loss: a score is taken after the epoch's last update."""
    return step - 1 if reason is Reason.NONFINITE_SCORE else step


def make_recipe(setting: Setting, rates: Sequence[float]) -> Recipe:
    """How a trial's updates are made, as far as advice goes by it."""
    return Recipe(
        optimizer=setting.optimizer,
        rates=rates,
        momentum=setting.momentum,
        nesterov=setting.nesterov,
        weight_decay=setting.weight_decay + decoupled_decay(setting),
        clip_norm=setting.clip_norm,
        clip_value=setting.clip_value,
        clips_otherwise=setting.clip_layer is not None or setting.clip_percentile is not None,
        decoupled=setting.decoupled_weight_decay,
    )


def recorded(watch: Watch, last: int) -> tuple[list[float], list[float]]:
    """The last steps up to `last` of loss and gradient norm, oldest first."""
    steps = range(max(0, last - RECORD + 1), last + 1)
    losses, norms = watch.record[:, [step % RECORD for step in steps]].tolist()
    return losses, norms


def first_to_blow_up(
    watch: Watch, names: Sequence[str], rates: Sequence[float] | None = None
) -> str | None:
    """The tensor that blew up first; None where that is not known any more.

    One that was not finite while the gradients still were is the cause of all that follows.
    A weight that grows makes the gradients of the others grow faster than its own. So it is the
    tensor that had grown most when the norm began to run away, if that is more than to `GROWN`
    times its usual size; else the one with the largest gradient at that step; later its growth has
    reached the others. `rates`: weights of the tensors (their learning rates, where these differ).
    If nothing ran away and gradients are not finite where the loss is, the last of those: the
    backward pass goes from the last layer to the first and hands on what is not finite.
    """
    if is_stranded(watch):
        return None
    unsound = ~torch.isfinite(watch.growth)
    if unsound.any():
        return names[int(torch.where(unsound, watch.peaks, -1.0).argmax())]
    broken = ~torch.isfinite(watch.bad_peaks)
    ran_away = watch.peaks.max() > ONSET * watch.first_norm.clamp(min=1.0)
    loss_broke = CODES[int(watch.code) - 1] is Reason.NONFINITE_LOSS
    if broken.any() and not (broken.all() and loss_broke) and not ran_away:
        return names[int(broken.nonzero().max())]
    if watch.growth.max() > GROWN:
        return names[int(watch.growth.argmax())]
    if not watch.peaks.any():
        return None
    peaks = (
        watch.peaks if rates is None else watch.peaks * torch.tensor(rates, dtype=watch.peaks.dtype)
    )
    return names[int(peaks.argmax())]


def is_stranded(watch: Watch) -> bool:
    """Whether the loss exploded long ago and has come back without the run."""
    exploded = CODES[int(watch.code) - 1] is Reason.LOSS_EXPLOSION
    return exploded and int(watch.stranded) > STRANDED_STEPS


def describe(watch: Watch, where: str, layer: str | None, losses: Sequence[float]) -> str:
    """What happened, in one sentence."""
    if is_stranded(watch):
        return (
            f"the loss exploded and training never came back: {STRANDED_STEPS} steps later it is "
            f"{losses[-1]:.3g}, no better than at the start ({where})"
        )
    tensor = f", first in {layer}" if layer else ""
    return f"{CODES[int(watch.code) - 1].meaning} {where}{tensor}"
