"""Scores of lanes on their folds' rows: the lanes of a fold share its rows, and go together."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sweep.problem.scores import Score
from sweep.training.batches import FoldTable
from sweep.training.experiment import Experiment
from sweep.training.lanes_member import Lane
from sweep.training.lanes_scoring import judge_lanes, stopping_losses
from sweep.training.lanes_step import State, Tensors
from sweep.training.memory import activations
from sweep.training.reference import as_matrix
from sweep.training.scoring import ScoreUndefined

NUMBERS_AT_ONCE = 2**22
"""Activations, over all lanes, of one evaluation call: what a cache holds."""
KEPT_ROWS = 2**24
"""Numbers of a fold's rows that are kept gathered between evaluations."""


class _Part(NamedTuple):
    """Some lanes of one fold, and the R rows they are scored on."""

    slots: list[int]
    fold: int
    rows: NDArray[np.int64]
    x: Tensor | None
    """None where it is too large to be gathered at once."""
    y: Tensor
    weights: Tensor | None
    parameters: Tensors
    buffers: Tensors


class Evaluation:
    """Evaluates lanes of one program, in evaluation mode."""

    def __init__(
        self, experiment: Experiment, module: nn.Module, table: FoldTable, pool: Executor
    ) -> None:
        self.experiment, self.module, self.table, self.pool = experiment, module, table, pool
        each = activations(module, experiment.problem.input_shape, experiment.dtype)
        self.rows_at_once = max(1, NUMBERS_AT_ONCE // each)
        self._own = threading.local()
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor, Tensor | None]] = {}

    def scores(
        self, lanes: Mapping[int, Lane], state: State, which: str, scores: Sequence[Score]
    ) -> dict[int, list[float | ScoreUndefined]]:
        """For each slot the scores on its fold's `test` or `train` rows."""

        def judged(part: _Part) -> list[list[float | ScoreUndefined]]:
            outputs = self._outputs(part)
            return [
                judge_lanes(
                    self.experiment, score, outputs, part.fold, part.rows, part.y, part.weights
                )
                for score in scores
            ]

        result: dict[int, list[float | ScoreUndefined]] = {}
        parts = self._parts(lanes, state, which)
        for part, by_score in zip(parts, self.pool.map(judged, parts), strict=True):
            for slot, *values in zip(part.slots, *by_score, strict=True):
                result[slot] = values
        return result

    def held_out_losses(self, lanes: Mapping[int, Lane], state: State) -> dict[int, float]:
        """For each slot that stops early the loss it looks at."""
        lanes = {s: lane for s, lane in lanes.items() if lane.model.plan.held_out is not None}
        result: dict[int, float] = {}
        for part in self._parts(lanes, state, "held_out"):
            outputs = self._outputs(part)
            values = stopping_losses(self.experiment, outputs, part.y, part.weights)
            result.update(zip(part.slots, values, strict=True))
        return result

    def _parts(self, lanes: Mapping[int, Lane], state: State, which: str) -> list[_Part]:
        by_fold: dict[int, list[int]] = {}
        for slot, lane in lanes.items():
            by_fold.setdefault(lane.model.member.fold, []).append(slot)
        parts = []
        for fold, slots in by_fold.items():
            # Which rows a fold holds out is the study's affair: the same for all of its lanes.
            rows = np.asarray(getattr(lanes[slots[0]].model.plan, which))
            x, y, weights = self._gathered(fold, which, rows)
            at_once = max(1, self.rows_at_once // len(rows))
            for begin in range(0, len(slots), at_once):
                part = slots[begin : begin + at_once]
                index = torch.tensor(part)
                parameters, buffers = (
                    {n: t[index] for n, t in tensors.items()}
                    for tensors in (state.parameters, state.buffers)
                )
                parts.append(_Part(part, fold, rows, x, y, weights, parameters, buffers))
        return parts

    @torch.no_grad()
    def _outputs(self, part: _Part) -> Tensor:
        """(k, R, K) of a part's k lanes."""
        put_out = vmap(self._one, in_dims=(0, 0, None))
        if part.x is not None:
            return put_out(part.parameters, part.buffers, part.x)
        pieces = np.array_split(part.rows, -(-len(part.rows) // self.rows_at_once))
        outputs = [
            put_out(part.parameters, part.buffers, self._take(part.fold, piece)[0])
            for piece in pieces
        ]
        return torch.cat(outputs, dim=1)

    def _gathered(
        self, fold: int, which: str, rows: NDArray[np.int64]
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(x, y, weights) of the rows; x is None where it is too large to be kept."""
        key = (fold, which)
        if key in self._kept:
            return self._kept[key]
        width = int(np.prod(self.experiment.problem.input_shape))
        if len(rows) <= self.rows_at_once and len(rows) * width <= KEPT_ROWS:
            self._kept[key] = self._take(fold, rows)
            return self._kept[key]
        index = torch.from_numpy(rows)
        weights = self.table.weights
        y = self.experiment.problem.y_of(fold)[index]
        return None, y, None if weights is None else weights[fold, index]

    def _take(self, fold: int, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
        x, y, weights = self.table.take(torch.tensor([fold]), torch.from_numpy(rows).unsqueeze(0))
        return x[0], y[0], None if weights is None else weights[0]

    def _one(self, parameters: Tensors, buffers: Tensors, x: Tensor) -> Tensor:
        # A functional call lends the module its parameters: a module serves one thread.
        if not hasattr(self._own, "module"):
            self._own.module = copy.deepcopy(self.module).eval()
        outputs = functional_call(self._own.module, {**parameters, **buffers}, (x,))
        return as_matrix(outputs, self.experiment.problem.n_outputs)
