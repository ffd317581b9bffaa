"""Lanes that step together: their slots, their state, and the steps that are under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from sweep.training.batches import BatchOrders
from sweep.training.experiment import Experiment
from sweep.training.lanes_begin import Beginning
from sweep.training.lanes_epochs import EpochEnds, diagnosis
from sweep.training.lanes_evaluate import Evaluation
from sweep.training.lanes_member import Lane, LaneModel
from sweep.training.lanes_seats import NEVER, Seats
from sweep.training.lanes_step import State
from sweep.training.lanes_stepper import Chunk, Stepper
from sweep.training.member import Done, Event, Outcome

SCORING = "scoring"
SOON = 64
"""Steps that a free slot waits for the end of the others' epoch: lanes that end their epochs
together are looked at and scored together."""
LEAST_LANES = 4
"""Lanes that keep a thread of compiled steps busy."""
SHRINK = 0.75
"""With this share of its slots in use or less, a bank that has no one waiting drops the rest."""


class Equipment(NamedTuple):
    """What all banks of a program train with. `limits`: the updates after which a member of this
    name is stopped.
    """

    experiment: Experiment
    stepper: Stepper
    evaluation: Evaluation
    orders: BatchOrders
    beginning: Beginning
    penalized: Sequence[str]
    limits: dict[tuple[int, int], int]


class _UnderWay(NamedTuple):
    """Steps that may be taken by other threads at present; `finish` awaits the state after them."""

    steps: int
    finish: Callable[[], State]


class Bank:
    """Slots, who is in them, and the state that they train.

    In turn: `finish` the steps under way, `fill` free slots, `begin` the next steps, and meanwhile
    have the `ends` of epochs settled.
    """

    def __init__(self, equipment: Equipment, seats: Seats | None = None) -> None:
        self.equipment = equipment
        self.experiment, self.stepper = equipment.experiment, equipment.stepper
        self.seats = Seats() if seats is None else seats
        self.ends = EpochEnds(
            self.experiment,
            equipment.evaluation,
            self.seats,
            equipment.orders,
            equipment.penalized,
            self.free,
        )
        self.state: State | None = None
        self._under_way: _UnderWay | None = None
        self.trained = 0
        """Updates of its members so far."""

    def free(self, slot: int) -> None:
        self.equipment.orders.release(int(self.seats.table["order"][slot]))
        self.equipment.limits.pop(self.seats.lane(slot).model.member.name, None)
        self.seats.leave(slot)

    # Slots.

    def fill(self, waiting: deque[LaneModel], most: int) -> None:
        """Gives free slots to waiting members, up to so many in all; drops slots nobody needs."""
        used, size = self.seats.taken, len(self.seats)
        new = max(0, min(len(waiting), most - len(used)))
        if new and self._epoch_ends_soon() and self._is_enough(len(used)):
            new = 0
        wanted = max(len(used) + new, min(2, most))
        if wanted > size or wanted <= SHRINK * size:
            self._resize(used.tolist(), wanted)
        if new:
            self._load([(slot, waiting.popleft()) for slot in self.seats.free[:new].tolist()])

    def divide(self) -> Bank:
        """A new bank that has every other of the lanes; of none is anything under way."""
        used = self.seats.taken.tolist()
        kept, moved = used[::2], used[1::2]
        other = Bank(self.equipment, self.seats.copy())
        other.state, other.ends.best = self.state, self.ends.best
        # One slot at least, for the shapes of its tensors.
        other._resize(moved, max(1, len(moved)))
        self._resize(kept, max(1, len(kept)))
        return other

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
        if self.state is None:
            return
        kept = self._index([*used, *[0] * (size - len(used))])
        self.state = tree_map_only(Tensor, lambda t: t[kept], self.state)
        self.ends.resize(kept)

    def _load(self, new: Sequence[tuple[int, LaneModel]]) -> None:
        """Puts fresh members into slots, all of them with one copy a tensor."""
        begun = self.equipment.beginning.of([model for _, model in new])
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
            order = self.equipment.orders.acquire(model.member.fold, 0, model.plan)
            limit = self.equipment.limits.get(model.member.name, NEVER)
            self.seats.take(slot, Lane(model), order, limit)

    def _index(self, slots: Sequence[int]) -> Int[Tensor, " k"]:
        return torch.tensor(slots, dtype=torch.int64, device=self.experiment.device)

    # Training.

    def begin(self, steps_left: float) -> None:
        """Begins to step every lane until the first of them ends an epoch or meets its limit.

        So many steps of one lane are to come, of all lanes of the program, as far as is known.
        """
        if not len(self.seats.taken):
            return
        assert self.state is not None
        steps = self.seats.steps_to_come(self.stepper.steps_at_once)
        chunk, left = self._chunk(steps), steps_left / len(self.seats)
        self._under_way = _UnderWay(steps, self.stepper.begin(self.state, chunk, left))

    def finish(self) -> list[Event]:
        """Waits for the steps that are under way, if any are; what happened in them."""
        events: list[Event] = []
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            self.state = under_way.finish()
            self.equipment.evaluation.compiled = self.stepper.compiled(SCORING)
            self.equipment.evaluation.traced = self.stepper.traced(SCORING)
            self.seats.advance(under_way.steps)
            self.trained += under_way.steps * len(self.seats.taken)
            events = self._look()
        return events + self._stopped()

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
            rows=self.equipment.orders.batches[places, within],
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
            self.free(slot)
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
            self.free(slot)
        return events
