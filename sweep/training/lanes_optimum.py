"""What solved members come to: their scores, a stack's lanes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from sweep.training.convex_member import ConvexMember
from sweep.training.experiment import Experiment
from sweep.training.lanes_scoring import judge_lanes, make_outcome
from sweep.training.member import Outcome
from sweep.training.reference import EVALUATION_ROWS
from sweep.training.scoring import ScoreUndefined


def outcomes(
    experiment: Experiment, solved: Sequence[tuple[ConvexMember, Tensor]]
) -> Iterator[tuple[ConvexMember, Outcome]]:
    """The outcome of each (member, its design weights (K, P)), in any order."""
    by_key = sorted(solved, key=lambda pair: pair[0].key)
    for _, pairs in groupby(by_key, key=lambda pair: pair[0].key):
        tasks, weights = zip(*pairs, strict=True)
        yield from zip(tasks, _of_stack(experiment, tasks, torch.stack(weights)), strict=True)


def _of_stack(
    experiment: Experiment, tasks: Sequence[ConvexMember], w: Tensor
) -> Iterator[Outcome]:
    task = tasks[0]
    problem, fold = experiment.problem, task.member.fold
    weight, bias = (
        part if part is None else part.to(experiment.dtype)
        for part in task.problem.design.model_weights(w)
    )
    assert weight is not None
    parameters = {"linear.weight": weight, "linear.bias": bias}
    nonzero = torch.zeros(len(tasks), dtype=torch.int64)
    for name in task.names:
        part = parameters[name]
        assert part is not None
        nonzero += torch.count_nonzero(part.flatten(1), dim=1)
    asked = experiment.all_scores
    rows = problem.folds[fold]
    scores: list[list[float | ScoreUndefined]] = []
    for index, judged in ((rows.test, asked), (rows.train, asked[:1])):
        at = torch.from_numpy(index)
        x = problem.x_of(fold)[at].flatten(1)
        chunks = [
            torch.einsum("nd,lkd->lnk", part, weight) for part in torch.split(x, EVALUATION_ROWS)
        ]
        outputs = torch.cat(chunks, dim=1)
        if bias is not None:
            outputs = outputs + bias.unsqueeze(1)
        y, c = problem.y_of(fold)[at], experiment.row_weights[fold]
        given = None if c is None else c[at].to(experiment.dtype)
        scores += [judge_lanes(experiment, s, outputs, fold, index, y, given) for s in judged]
    for each, n, *values, train_score in zip(tasks, nonzero.tolist(), *scores, strict=True):
        steps = each.effort.iterations
        yield make_outcome(each.member, (steps, steps), asked, values, train_score, n)
