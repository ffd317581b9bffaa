"""One vmapped program: members of equal shapes, a lane each, stepped together.

Models, losses, penalties, updates and divergence rules are written for one model; this file maps
them over lanes, and nothing else does. Each lane has its own parameters, optimizer state,
learning rate, step counter, batch order and divergence watch. A lane whose member finished or
diverged is given to the next waiting member; until then it computes garbage that nobody reads,
and since no operation mixes lanes, garbage (NaN included) stays in its lane.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from sweep.training.batches import BatchOrders, FoldTable
from sweep.training.experiment import Experiment
from sweep.training.lanes_begin import Beginning
from sweep.training.lanes_brief import brief
from sweep.training.lanes_epochs import EpochEnds, diagnosis
from sweep.training.lanes_evaluate import Evaluation
from sweep.training.lanes_member import Lane, LaneModel
from sweep.training.lanes_seats import NEVER, Seats
from sweep.training.lanes_step import LaneStep, State
from sweep.training.lanes_stepper import Chunk, Stepper
from sweep.training.lanes_trace import Traced
from sweep.training.member import Done, Event, Outcome
from sweep.training.threads import Workers, on_threads

SLICE_SECONDS = 0.2
"""`advance` returns at least this often, so that its caller stays responsive."""
SOON = 64
"""Steps that a free slot waits for the end of the others' epoch: lanes that end their epochs
together are looked at and scored together."""
LEAST_LANES = 4
"""Lanes that keep a thread of compiled steps busy."""
SCORING = "scoring"
SHRINK = 0.75
"""With this share of its slots in use or less, a program that has no one waiting drops the rest."""


class _UnderWay(NamedTuple):
    """Steps that may be taken by other threads at present; `finish` awaits the state after them."""

    steps: int
    finish: Callable[[], State]


class Program:
    """Slots, who is in them, and the step that trains them all."""

    def __init__(
        self,
        experiment: Experiment,
        model: LaneModel,
        slots: int,
        compile_when: str = "never",
        workers: Workers | None = None,
    ) -> None:
        setting = model.member.setting
        self.experiment, self.max_slots = experiment, slots
        self.waiting: deque[LaneModel] = deque()
        self.seats = Seats()
        self.limits: dict[tuple[int, int], int] = {}
        start = model.start
        step = LaneStep(experiment, start.module, start.penalized, setting)
        self.beginning = Beginning(experiment, model, step)
        rows = max(len(fold.train) for fold in experiment.problem.folds)
        self.batch = min(setting.batch_size or rows, rows)
        if start.traits.rows_interact:
            self.batch = model.plan.batch
        table = FoldTable.of(experiment)
        workers = workers or Workers(experiment.device)
        self.stepper = Stepper(
            step,
            table,
            compile_when,
            brief=lambda: brief(experiment, model, self.batch),
            more=self._scoring_source,
            workers=workers,
        )
        self.evaluation = Evaluation(experiment, start.module, table, workers)
        self.orders = BatchOrders(experiment, self.batch)
        self.ends = EpochEnds(
            experiment, self.evaluation, self.seats, self.orders, start.penalized, self._free
        )
        self.state: State | None = None
        self._under_way: _UnderWay | None = None
        self.to_come = 0.0
        self.most_used = 0
        """Slots there have been at most."""
        self.trained = 0
        """Updates of members so far."""

    @property
    def pending(self) -> int:
        return len(self.waiting) + len(self.seats.taken)

    def models(self) -> list[LaneModel]:
        seated = [lane.model for lane in self.seats.lanes if lane is not None]
        return seated + list(self.waiting)

    def limit(self, name: tuple[int, int], steps: int) -> None:
        """The member of this name, if it is here, ends once it has tried so many updates."""
        slot = self.seats.slot_of(name)
        if slot is not None:
            self.seats.table["limit"][slot] = steps
        elif not any(model.member.name == name for model in self.waiting):
            return
        self.limits[name] = steps

    def remove(self, name: tuple[int, int]) -> None:
        slot = self.seats.slot_of(name)
        if slot is not None:
            self._free(slot)
        self.waiting = deque(m for m in self.waiting if m.member.name != name)
        self.limits.pop(name, None)

    def advance(self) -> list[Event]:
        """Trains until something happens, or for `SLICE_SECONDS`.

        What is compiled goes on meanwhile on threads of its own: whatever happened is dealt with
        while the next steps are taken.
        """
        until = time.monotonic() + SLICE_SECONDS
        events: list[Event] = []
        # What is compiled keeps every core busy: what is done beside it has none to share with.
        with on_threads(1 if self.stepper.is_compiled else None):
            while self.pending and not events:
                events = self._finish() + self._stopped()
                self._fill()
                self._begin()
                events += self.ends.settle()
                if time.monotonic() > until:
                    break
        return events

    # Slots.

    def _fill(self) -> None:
        """Gives free slots to waiting members, and drops slots that nobody needs."""
        used, size = self.seats.taken, len(self.seats)
        new = min(len(self.waiting), self.max_slots - len(used))
        if new and self._epoch_ends_soon() and self._is_enough(len(used)):
            new = 0
        # The compiled step takes two lanes or more.
        wanted = max(len(used) + new, min(2, self.max_slots))
        if wanted > size or wanted <= SHRINK * size:
            self._resize(used.tolist(), wanted)
        if new:
            self._load([(slot, self.waiting.popleft()) for slot in self.seats.free[:new].tolist()])

    def _epoch_ends_soon(self) -> bool:
        """Whether the next lane to end its epoch is in the midst of it, and not far from its end:
        who takes a slot then will end with it, and be scored with it.
        """
        left = self.seats.nearest_end()
        return left is not None and 0 < left <= SOON

    def _is_enough(self, used: int) -> bool:
        """Whether so many lanes, for some steps, leave hardly anything undone that more would do.

        Compiled, it is as much work with few as with many, as long as each thread has some.
        """
        if self.stepper.is_compiled:
            return used >= LEAST_LANES * self.stepper.threads
        return 2 * used >= len(self.seats)

    def _resize(self, used: Sequence[int], size: int) -> None:
        self.seats.resize(used, size)
        self.most_used = max(self.most_used, size)
        if self.state is None:
            return
        kept = self._index([*used, *[0] * (size - len(used))])
        self.state = tree_map_only(Tensor, lambda t: t[kept], self.state)
        self.ends.resize(kept)

    def _load(self, new: Sequence[tuple[int, LaneModel]]) -> None:
        """Puts fresh members into slots, all of them with one copy a tensor."""
        begun = self.beginning.of([model for _, model in new])
        slots = self._index([slot for slot, _ in new])
        if self.state is None:
            size = len(self.seats)
            self.state = tree_map_only(Tensor, lambda t: t.new_zeros(size, *t.shape[1:]), begun)
        tree_map(
            lambda whole, part: (
                whole.index_copy_(0, slots, part) if isinstance(whole, Tensor) else whole
            ),
            self.state,
            begun,
        )
        for slot, model in new:
            order = self.orders.acquire(model.member.fold, 0, model.plan)
            limit = self.limits.get(model.member.name, NEVER)
            self.seats.take(slot, Lane(model), order, limit)

    def _index(self, slots: Sequence[int]) -> Int[Tensor, " k"]:
        return torch.tensor(slots, dtype=torch.int64, device=self.experiment.device)

    def _free(self, slot: int) -> None:
        self.orders.release(int(self.seats.table["order"][slot]))
        self.limits.pop(self.seats.lane(slot).model.member.name, None)
        self.seats.leave(slot)

    # Training.

    def _begin(self) -> None:
        """Begins to step every lane until the first of them ends an epoch or meets its limit."""
        if not len(self.seats.taken):
            return
        assert self.state is not None
        steps = self.seats.steps_to_come(self.stepper.steps_at_once)
        chunk, left = self._chunk(steps), self._steps_left()
        self._under_way = _UnderWay(steps, self.stepper.begin(self.state, chunk, left))

    def _finish(self) -> list[Event]:
        """Waits for the steps that are under way, if any are; what happened in them."""
        if self._under_way is None:
            return []
        under_way, self._under_way = self._under_way, None
        self.state = under_way.finish()
        self.evaluation.compiled = self.stepper.compiled(SCORING)
        self.evaluation.traced = self.stepper.traced(SCORING)
        self.seats.advance(under_way.steps)
        self.trained += under_way.steps * len(self.seats.taken)
        return self._look()

    def _scoring_source(self, state: State) -> dict[str, Callable[[], Traced]]:
        source = self.evaluation.source(state)
        return {} if source is None else {SCORING: source}

    def _steps_left(self) -> float:
        """Steps of all slots together that are to come, as far as is known."""
        left = self.seats.steps_left() + sum(model.plan.steps for model in self.waiting)
        average = left / max(1, self.pending)
        return (left + self.to_come * average) / len(self.seats)

    def _chunk(self, steps: int) -> Chunk:
        """What the next steps of all lanes are given."""
        seats = self.seats.table[self.seats.seated()]
        columns = ("fold", "order", "step", "per_epoch", "batch", "rows")
        device = self.experiment.device
        given = torch.from_numpy(np.stack([seats[name] for name in columns])).to(device)
        folds, places, start, per_epoch, per_batch, n_rows = given.unbind(0)
        ahead = torch.arange(steps, device=device).unsqueeze(1)
        within = start % per_epoch + ahead
        rates = torch.from_numpy(self.seats.rates(steps))
        return Chunk(
            folds=folds,
            rows=self.orders.batches[places, within],
            n_rows=torch.minimum(per_batch, n_rows - within * per_batch),
            step=start + ahead,
            learning_rate=rates.to(device, self.experiment.dtype),
        )

    # Looking.

    def _look(self) -> list[Event]:
        """What happened in the last chunk: divergence and ends of epochs."""
        assert self.state is not None
        events: list[Event] = []
        codes = self.state.watch.code.cpu().numpy()
        for slot in self.seats.taken[codes[self.seats.taken] != 0].tolist():
            model = self.seats.lane(slot).model
            events.append(Done(model.member, diagnosis(self.state.watch, slot, model)))
            self._free(slot)
        ended = self.seats.at_epochs_end().tolist()
        if ended:
            self.ends.begin(self.state, ended)
            if not self.ends.are_apart:
                events += self.ends.settle()
        return events

    def _stopped(self) -> list[Event]:
        """Members that have come to their limit; what is known of their last epoch comes first."""
        if not len(self.seats.at_limit()):
            return []
        events = self.ends.settle()
        for slot in self.seats.at_limit().tolist():
            events.append(Done(self.seats.lane(slot).model.member, Outcome(stopped=True)))
            self._free(slot)
        return events
