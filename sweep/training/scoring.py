"""From a member's outputs to its scores, the same for both engines."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sweep.errors import SweepError
from sweep.problem.losses import loss_per_sample
from sweep.problem.scores import Score
from sweep.training.experiment import Experiment


class ScoreUndefined(ValueError):
    """The score does not exist for these rows although every prediction is finite."""


def judge(
    experiment: Experiment, score: Score, outputs: Tensor, fold: int, rows: NDArray[np.int64]
) -> float:
    """The score of outputs (n, K) on the given rows of a fold.

    Not finite if an output is not. Raises ScoreUndefined where finite outputs have no score, as
    the ROC AUC of a single class.
    """
    outputs = outputs.cpu()
    if not torch.isfinite(outputs).all():
        return math.nan
    index = torch.from_numpy(rows)
    y = experiment.problem.y_of(fold)[index]
    weights = experiment.row_weights[fold]
    w = torch.ones(len(rows), dtype=outputs.dtype) if weights is None else weights[index]
    if score.tensor is not None:
        value = float(score.tensor(outputs, y, w))
    else:
        given = None if weights is None else w.numpy()
        try:
            value = score.evaluate(outputs.numpy(), y.numpy(), given)
        except SweepError as refused:
            raise ScoreUndefined(f"{refused} (fold {fold})") from None
    if math.isnan(value):
        raise ScoreUndefined(
            f"{score.name} is undefined on fold {fold}: its rows may hold a single class or value"
        )
    return value


def mean_loss(kind: str, outputs: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    """The mean loss of outputs (n, K), penalty aside, that early stopping looks at."""
    losses = loss_per_sample(kind, outputs, y)
    return losses.mean() if weights is None else (losses * weights).mean()


def stopping_loss(
    experiment: Experiment, outputs: Tensor, fold: int, rows: NDArray[np.int64]
) -> float:
    """`mean_loss` of outputs (n, K) on the given rows of a fold."""
    index = torch.from_numpy(rows)
    y, weights = experiment.problem.y_of(fold)[index], experiment.row_weights[fold]
    given = None if weights is None else weights[index]
    return float(mean_loss(experiment.problem.kind, outputs.cpu(), y, given))
