"""Scores of many lanes at once, equal to `sweep.training.scoring` for each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from sweep.problem.losses import loss_per_sample
from sweep.problem.scores import Score
from sweep.training.experiment import Experiment
from sweep.training.scoring import ScoreUndefined, judge


def judge_lanes(
    experiment: Experiment,
    score: Score,
    outputs: Tensor,
    folds: Sequence[int],
    rows: Tensor,
    mask: Tensor,
) -> list[float | ScoreUndefined]:
    """`judge` for outputs (k, R, K) of k lanes; rows that the mask leaves out do not count."""
    finite = torch.isfinite(outputs).flatten(1).all(1).tolist()
    direct: list[float] = []
    if score.tensor is not None:
        y, weights = _targets(experiment, folds, rows, outputs.dtype)
        direct = vmap(score.tensor)(outputs, y, weights * mask).tolist()
    values: list[float | ScoreUndefined] = []
    for i, fold in enumerate(folds):
        if not finite[i]:
            values.append(math.nan)
        elif direct and not math.isnan(direct[i]):
            values.append(direct[i])
        else:
            n = int(mask[i].sum())
            try:
                values.append(judge(experiment, score, outputs[i, :n], fold, rows[i, :n].numpy()))
            except ScoreUndefined as undefined:
                values.append(undefined)
    return values


def stopping_losses(
    experiment: Experiment, outputs: Tensor, folds: Sequence[int], rows: Tensor, mask: Tensor
) -> list[float]:
    """`stopping_loss` for outputs (k, R, K) of k lanes."""
    y, weights = _targets(experiment, folds, rows, outputs.dtype)

    def one(outputs: Tensor, y: Tensor, w: Tensor, inside: Tensor) -> Tensor:
        losses = loss_per_sample(experiment.problem.kind, outputs, y)
        return torch.where(inside, losses * w, 0.0).sum() / inside.sum()

    values: list[float] = vmap(one)(outputs, y, weights, mask).tolist()
    return values


def _targets(
    experiment: Experiment, folds: Sequence[int], rows: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(y, weights), each (k, R)."""
    y = torch.stack([experiment.problem.y_of(f)[r] for f, r in zip(folds, rows, strict=True)])
    weights = [experiment.row_weights[fold] for fold in folds]
    if weights[0] is None:
        return y, torch.ones(rows.shape, dtype=dtype)
    stacked = [w[r] for w, r in zip(weights, rows, strict=True) if w is not None]
    return y, torch.stack(stacked).to(dtype)
