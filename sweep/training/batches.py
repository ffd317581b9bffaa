"""Which rows each lane's next batch holds, and which test rows it is scored on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sweep.problem.scaling import Scaling
from sweep.training.experiment import Experiment
from sweep.training.member import Plan

KEPT_ROWS = 2**23
"""Row numbers in the orders that are kept although nobody is in their epoch."""


class BatchOrders:
    """The row order of each (fold, epoch), shared by the lanes that are there.

    `batches` is (P, S, B): place p holds the S batches of one epoch, each padded to B rows by
    repeating its first one (a padded row is as finite as the rest, and its loss is not counted).
    What nobody uses any more is kept while there is room: lanes come to an epoch one after another.
    """

    def __init__(self, experiment: Experiment, batch: int) -> None:
        self.seed, self.batch = experiment.spec.seed, batch
        self.batches: Int[Tensor, "P S B"] = torch.zeros(
            0, 0, batch, dtype=torch.int32, device=experiment.device
        )
        self._place: dict[tuple[int, int], int] = {}
        self._users: list[int] = []
        self._unused: dict[int, tuple[int, int]] = {}
        """Places whose order nobody uses, the one that was given up first at first."""

    def acquire(self, fold: int, epoch: int, plan: Plan) -> int:
        """The place p of this epoch's order."""
        key = (fold, 0 if plan.is_full_batch else epoch)
        if key not in self._place:
            padded = self._padded(plan.rows_of(self.seed, fold, epoch), plan)
            place = self._free_place(len(padded))
            self.batches[place, : len(padded)] = torch.from_numpy(padded)
            self._place[key] = place
            self._unused[place] = key
        place = self._place[key]
        self._unused.pop(place, None)
        self._users[place] += 1
        return place

    def release(self, place: int) -> None:
        self._users[place] -= 1
        if self._users[place] == 0:
            self._unused[place] = next(key for key, p in self._place.items() if p == place)

    def _padded(self, order: np.ndarray, plan: Plan) -> np.ndarray:
        batches = np.empty((plan.steps_per_epoch, self.batch), dtype=np.int32)
        for i in range(plan.steps_per_epoch):
            part = order[i * plan.batch : (i + 1) * plan.batch]
            batches[i, : len(part)] = part
            batches[i, len(part) :] = part[0]
        return batches

    def _free_place(self, steps: int) -> int:
        """A new place, or where there are enough, that of the order longest out of use."""
        had, most = self.batches.shape[:2]
        if self._unused and len(self._users) * max(steps, most) * self.batch >= KEPT_ROWS:
            place = next(iter(self._unused))
            del self._place[self._unused.pop(place)]
        else:
            place = len(self._users)
            self._users.append(0)
        if place >= had or steps > most:
            places = had if place < had else max(place + 1, 2 * had)
            grown = self.batches.new_zeros(places, max(steps, most), self.batch)
            grown[:had, :most] = self.batches
            self.batches = grown
        return place


class FoldTable(NamedTuple):
    """For every fold at once: where its version of the data begins, and its row weights."""

    x: Tensor
    scaling: Scaling | None
    y: Tensor
    x_start: Int[Tensor, " F"]
    y_start: Int[Tensor, " F"]
    weights: Float[Tensor, "F N"] | None

    @classmethod
    def of(cls, experiment: Experiment) -> FoldTable:
        problem, device = experiment.placed, experiment.device
        folds = range(len(problem.folds))
        versions, n_rows = problem.x.shape[:2]
        y_versions = problem.y.shape[0]
        weights = None
        if problem.weights is not None:
            stacked = torch.stack([w for w in experiment.row_weights if w is not None])
            weights = stacked.to(device, experiment.dtype)
        return cls(
            x=problem.x.flatten(0, 1),
            scaling=problem.scaling,
            y=problem.y.flatten(0, 1),
            x_start=torch.tensor(
                [n_rows * (f if versions > 1 else 0) for f in folds], device=device
            ),
            y_start=torch.tensor(
                [n_rows * (f if y_versions > 1 else 0) for f in folds], device=device
            ),
            weights=weights,
        )

    def take(
        self, folds: Int[Tensor, M], rows: Int[Tensor, "M B"]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x, y, weights) of the given rows, each (M, B, ...)."""
        shape, flat = rows.shape, rows.flatten()
        at = (self.x_start[folds].unsqueeze(1) + rows).flatten()
        x = self.x.index_select(0, at).view(*shape, *self.x.shape[1:])
        if self.scaling is not None:
            x = self.scaling.apply(x, folds)
        at = (self.y_start[folds].unsqueeze(1) + rows).flatten()
        y = self.y.index_select(0, at).view(shape)
        if self.weights is None:
            return x, y, None
        lane_fold = folds.unsqueeze(1).expand(shape).flatten()
        return x, y, self.weights[lane_fold, flat].view(shape)
