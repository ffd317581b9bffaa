"""From what the judge saw and the optimizers hold to the diagnosis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sweep.guard.judge import Judge
from sweep.training.advice import Recipe, advise
from sweep.training.diagnosis import describe, first_to_blow_up
from sweep.training.divergence import CODES
from sweep.training.member import finite


def diagnose(
    judge: Judge,
    named: Mapping[str, nn.Parameter],
    optimizers: Sequence[Optimizer],
    clip_norm: float | None,
) -> dict[str, Any]:
    """The `failure` object; a loop of one's own has neither fold nor epoch."""
    reason, step = CODES[int(judge.watch.code) - 1], judge.step
    losses, norms = [row.loss for row in judge.rows], [row.norm for row in judge.rows]
    groups = [(o, group) for o in optimizers for group in o.param_groups]
    group_of = {id(p): i for i, (_, group) in enumerate(groups) for p in group["params"]}
    layer = _layer(judge, named, group_of)
    # A decay that explodes by itself does so whatever the gradients: its group is the culprit.
    decaying = [i for i, (o, group) in enumerate(groups) if _decays_apart(o, group)]
    if decaying and layer is not None and group_of.get(id(named[layer])) not in decaying:
        inside = {name: p for name, p in named.items() if group_of.get(id(p)) in decaying}
        layer = max(inside, key=lambda name: float(inside[name].detach().norm()), default=layer)
    place = group_of.get(id(named[layer]), 0) if layer is not None else 0
    recipe = recipe_of(*groups[place], [row.rates[place] for row in judge.rows], clip_norm)
    return {
        "kind": "divergence",
        "reason": reason.value,
        "fold": None,
        "epoch": None,
        "step": step,
        "layer": layer,
        "loss": finite(losses[-1]),
        "grad_norm": finite(norms[-1]),
        "message": describe(judge.watch, f"at step {step}", layer, losses),
        "advice": advise(reason.value, layer, norms, recipe, float(judge.watch.first_norm)),
        "losses": [finite(value) for value in losses],
        "grad_norms": [finite(value) for value in norms],
    }


def recipe_of(
    optimizer: Optimizer, group: Mapping[str, Any], rates: Sequence[float], clip_norm: float | None
) -> Recipe:
    """How a parameter group of a torch optimizer is updated."""
    return Recipe(
        optimizer=type(optimizer).__name__.lower(),
        rates=rates,
        momentum=float(group.get("momentum") or 0.0),
        nesterov=bool(group.get("nesterov")),
        weight_decay=float(group.get("weight_decay") or 0.0),
        clip_norm=clip_norm,
    )


def _decays_apart(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    rate = float(group["lr"])
    recipe = recipe_of(optimizer, group, [rate], None)
    return rate * recipe.weight_decay > recipe.most_decay


def _layer(
    judge: Judge, named: Mapping[str, nn.Parameter], group_of: Mapping[int, int]
) -> str | None:
    """The tensor that blew up first, by the rule of the engines.

    Of the gradients' norms the root mean square counts, times the parameter's learning rate: how
    far an entry moved.
    """
    rates = judge.rows[-1].rates
    weights = [
        rates[group_of[id(p)]] / math.sqrt(max(1, p.numel())) if id(p) in group_of else 0.0
        for p in named.values()
    ]
    return first_to_blow_up(judge.watch, list(named), weights)
