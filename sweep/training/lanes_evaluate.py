"""Scores of lanes on their folds' rows, as many lanes and rows at a time as fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
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

NUMBERS_AT_ONCE = 2**25
"""Activations, over all lanes, of one evaluation call."""


class Evaluation:
    """Evaluates lanes of one program, in evaluation mode."""

    def __init__(self, experiment: Experiment, module: nn.Module, table: FoldTable) -> None:
        self.experiment, self.module, self.table = experiment, module, table
        each = activations(module, experiment.problem.input_shape, experiment.dtype)
        self.rows_at_once = max(1, NUMBERS_AT_ONCE // each)

    def scores(
        self, lanes: Mapping[int, Lane], state: State, which: str, scores: Sequence[Score]
    ) -> dict[int, list[float | ScoreUndefined]]:
        """For each slot the scores on its fold's `test` or `train` rows."""
        result: dict[int, list[float | ScoreUndefined]] = {slot: [] for slot in lanes}
        for part, rows, mask, outputs in self._outputs(lanes, state, which):
            folds = [lanes[slot].model.member.fold for slot in part]
            for score in scores:
                values = judge_lanes(self.experiment, score, outputs, folds, rows, mask)
                for slot, value in zip(part, values, strict=True):
                    result[slot].append(value)
        return result

    def held_out_losses(self, lanes: Mapping[int, Lane], state: State) -> dict[int, float]:
        """For each slot that stops early the loss it looks at."""
        lanes = {s: lane for s, lane in lanes.items() if lane.model.plan.held_out is not None}
        result: dict[int, float] = {}
        for part, rows, mask, outputs in self._outputs(lanes, state, "held_out"):
            folds = [lanes[slot].model.member.fold for slot in part]
            values = stopping_losses(self.experiment, outputs, folds, rows, mask)
            result.update(zip(part, values, strict=True))
        return result

    @torch.no_grad()
    def _outputs(
        self, lanes: Mapping[int, Lane], state: State, which: str
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """(slots, rows (k, R), mask (k, R), outputs (k, R, K)), a part of the lanes at a time."""
        if not lanes:
            return
        indices = {s: np.asarray(getattr(lane.model.plan, which)) for s, lane in lanes.items()}
        longest = max(len(i) for i in indices.values())
        at_once = max(1, self.rows_at_once // longest)
        slots, n_slots = list(lanes), len(state.watch.code)
        for begin in range(0, len(slots), at_once):
            part = slots[begin : begin + at_once]
            rows = torch.from_numpy(np.stack([np.resize(indices[s], longest) for s in part]))
            lengths = torch.tensor([len(indices[s]) for s in part])
            mask = torch.arange(longest) < lengths.unsqueeze(1)
            index = torch.tensor(part)
            parameters, buffers = (
                {n: t if len(part) == n_slots else t[index] for n, t in tensors.items()}
                for tensors in (state.parameters, state.buffers)
            )
            folds = torch.tensor([lanes[s].model.member.fold for s in part])
            chunks = [
                vmap(self._one)(parameters, buffers, self.table.take(folds, piece)[0])
                for piece in torch.split(rows, max(1, self.rows_at_once // len(part)), dim=1)
            ]
            yield part, rows, mask, torch.cat(chunks, dim=1)

    def _one(self, parameters: Tensors, buffers: Tensors, x: Tensor) -> Tensor:
        outputs = functional_call(self.module, {**parameters, **buffers}, (x,))
        return as_matrix(outputs, self.experiment.problem.n_outputs)
