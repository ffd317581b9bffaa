"""Scores of many lanes at once, equal to `sweep.training.scoring` for each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from sweep.problem.scores import Score
from sweep.training.experiment import Experiment
from sweep.training.member import Member, Outcome
from sweep.training.reference import error_failure
from sweep.training.scoring import ScoreUndefined, judge, mean_loss


def with_formula(experiment: Experiment) -> list[Score]:
    """The study's scores that `measure` finds; none where the first of them has no formula."""
    if experiment.score.tensor is None:
        return []
    return [score for score in experiment.all_scores if score.tensor is not None]


class Measured(NamedTuple):
    """What `measure` found: a list of the lanes for each score `with_formula`."""

    scores: list[list[float]]
    """NaN if an output is not finite, as `judge` has it."""
    losses: list[float]
    """0 where the study stops no member early."""
    undefined: list[bool]
    """Whether the score of some lane does not exist although its outputs are finite."""

    @classmethod
    def of(cls, parts: Iterable[Float[Tensor, "k n"]] | None) -> Measured | None:
        """Of all lanes, one part after the other, as soon as the last one is there."""
        if parts is None or not (each := list(parts)):
            return None
        measured = torch.cat(each)
        found, losses, finite = measured[:, :-2].T, measured[:, -2], measured[:, -1] > 0
        scores = torch.where(finite, found, torch.nan)
        undefined = (torch.isnan(scores) & finite).any(1)
        return cls(scores.tolist(), losses.tolist(), undefined.tolist())


def measure(
    experiment: Experiment, outputs: Tensor, y: Tensor, weights: Tensor | None
) -> Float[Tensor, " n"]:
    """Of one lane's outputs (R, K): the scores `with_formula`, the loss that early stopping looks
    at (0 where the study has none), and whether all outputs are finite.
    """
    w = outputs.new_ones(len(outputs)) if weights is None else weights
    scores = [s.tensor(outputs, y, w) for s in with_formula(experiment) if s.tensor is not None]
    loss = outputs.new_zeros(())
    if experiment.spec.train.early_stopping is not None:
        loss = mean_loss(experiment.problem.kind, outputs, y, weights)
    finite = torch.isfinite(outputs.abs().amax()).to(outputs.dtype)
    return torch.stack([*scores, loss, finite])


def judge_lanes(
    experiment: Experiment,
    score: Score,
    outputs: Tensor,
    fold: int,
    rows: NDArray[np.int64],
    y: Tensor,
    weights: Tensor | None,
) -> list[float | ScoreUndefined]:
    """`judge` for outputs (k, R, K) of k lanes on the same R rows of a fold."""
    if score.tensor is None:
        outputs = outputs.cpu()
    finite = torch.isfinite(outputs).flatten(1).all(1).tolist()
    direct: list[float] = []
    if score.tensor is not None:
        w = outputs.new_ones(len(rows)) if weights is None else weights
        direct = vmap(score.tensor, in_dims=(0, None, None))(outputs, y, w).tolist()
    values: list[float | ScoreUndefined] = []
    for i in range(len(outputs)):
        if not finite[i]:
            values.append(math.nan)
        elif direct and not math.isnan(direct[i]):
            values.append(direct[i])
        else:
            try:
                values.append(judge(experiment, score, outputs[i], fold, rows))
            except ScoreUndefined as undefined:
                values.append(undefined)
    return values


def stopping_losses(
    experiment: Experiment, outputs: Tensor, y: Tensor, weights: Tensor | None
) -> list[float]:
    """`mean_loss` for outputs (k, R, K) of k lanes on the same R rows."""
    kind = experiment.problem.kind
    values: list[float] = vmap(lambda one: mean_loss(kind, one, y, weights))(outputs).tolist()
    return values


def make_outcome(
    member: Member,
    at: tuple[int, int],
    asked: Sequence[Score],
    test: Sequence[float | ScoreUndefined],
    train: float | ScoreUndefined,
    nonzero: int,
) -> Outcome:
    """What a trained member comes to: its `test` scores, one of each asked for, and the first of
    them on its `train` rows. A score that is undefined is its failure, `at` (epoch, step).
    """
    known: list[float] = []
    for value in (test[0], train, *test[1:]):
        if isinstance(value, ScoreUndefined):
            return Outcome(failure=error_failure(value, member, *at))
        known.append(value)
    score, train_score, *more = known
    names = [kind.name for kind in asked[1:]]
    return Outcome(score, train_score, nonzero, dict(zip(names, more, strict=True)))
