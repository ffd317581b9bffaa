"""Which member has which slot, and how far each is; kept in arrays, for all slots at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sweep.training.lanes_member import Lane
from sweep.training.member import learning_rate_at

RATES_AHEAD = 512
"""Learning rates are settled for so many steps at a time."""
NEVER = 2**62
_COLUMNS = "taken fold order step per_epoch steps batch rows limit rates_from"
_SEAT = np.dtype([(name, np.int64) for name in _COLUMNS.split()])
Slots = NDArray[np.int64]


class Seats:
    """The slots of a program.

    `table` has a row a slot: whether it is `taken`; its member's fold, batch, training `rows`,
    updates an epoch and in all, and the number of updates at which it is stopped (`limit`); the
    updates it has made (`step`), and the place of its epoch's row order.
    """

    def __init__(self) -> None:
        self.lanes: list[Lane | None] = []
        self.table = np.zeros(0, _SEAT)
        self._rates = np.zeros((0, RATES_AHEAD))

    def __len__(self) -> int:
        return len(self.lanes)

    @property
    def taken(self) -> Slots:
        """The slots that somebody has."""
        return np.flatnonzero(self.table["taken"])

    @property
    def free(self) -> Slots:
        return np.flatnonzero(self.table["taken"] == 0)

    def lane(self, slot: int) -> Lane:
        """Who has this slot."""
        lane = self.lanes[slot]
        assert lane is not None
        return lane

    def slot_of(self, name: tuple[int, int]) -> int | None:
        """The slot of the member of this name, if it has one."""
        named = (i for i, at in enumerate(self.lanes) if at and at.model.member.name == name)
        return next(named, None)

    def take(self, slot: int, lane: Lane, order: int, limit: int = NEVER) -> None:
        """The member begins here."""
        member, plan = lane.model.member, lane.model.plan
        self.lanes[slot] = lane
        self.table[slot] = (
            True,
            member.fold,
            order,
            0,
            plan.steps_per_epoch,
            plan.steps,
            plan.batch,
            len(plan.train),
            limit,
            # None are settled yet.
            -RATES_AHEAD,
        )

    def leave(self, slot: int) -> None:
        self.lanes[slot] = None
        self.table["taken"][slot] = False

    def copy(self) -> Seats:
        """The same members in the same slots."""
        made = copy.copy(self)
        made.lanes, made.table, made._rates = self.lanes[:], self.table.copy(), self._rates.copy()
        return made

    def resize(self, kept: Sequence[int], size: int) -> None:
        """The slots kept come first, then free ones."""
        more = size - len(kept)
        self.lanes = [self.lanes[slot] for slot in kept] + [None] * more
        self.table = np.concatenate([self.table[list(kept)], np.zeros(more, _SEAT)])
        self._rates = np.concatenate([self._rates[list(kept)], np.zeros((more, RATES_AHEAD))])

    # How far they are.

    def steps_to_come(self, at_most: int) -> int:
        """Until the first of them ends an epoch or meets its limit."""
        seats = self.table[self.taken]
        left = np.minimum(
            seats["per_epoch"] - seats["step"] % seats["per_epoch"], seats["limit"] - seats["step"]
        )
        return int(left.min(initial=at_most))

    def advance(self, steps: int) -> None:
        """They made so many updates more."""
        self.table["step"][self.taken] += steps

    def steps_left(self) -> int:
        """Updates that all of them together have left."""
        seats = self.table[self.taken]
        return int((seats["steps"] - seats["step"]).sum())

    def nearest_end(self) -> int | None:
        """Updates until the first of their epochs ends; 0 where one is about to begin."""
        seats = self.table[self.taken]
        left = -seats["step"] % seats["per_epoch"]
        return int(left.min()) if len(left) else None

    def at_epochs_end(self) -> Slots:
        """The slots whose last update was an epoch's last."""
        slots, step = self.taken, self.table["step"]
        ended: Slots = slots[
            (step[slots] > 0) & (step[slots] % self.table["per_epoch"][slots] == 0)
        ]
        return ended

    def at_limit(self) -> Slots:
        slots = self.taken
        return slots[self.table["step"][slots] >= self.table["limit"][slots]]

    # What their next updates are given.

    def seated(self) -> Slots:
        """For each slot one that is taken: itself, or, since it computes what some member computes
        and nobody looks, the first."""
        taken = self.taken
        slots = np.full(len(self), taken[0])
        slots[taken] = taken
        return slots

    def rates(self, steps: int) -> NDArray[np.float64]:
        """(steps, M): the learning rates of the next so many updates of `seated()`."""
        step, since = self.table["step"], self.table["rates_from"]
        taken = self.taken
        for slot in taken[step[taken] + steps > since[taken] + RATES_AHEAD].tolist():
            model = self.lane(slot).model
            ahead = np.arange(step[slot], step[slot] + RATES_AHEAD)
            self._rates[slot] = learning_rate_at(ahead, model.member.setting, model.plan)
            since[slot] = step[slot]
        slots = self.seated()
        found: NDArray[np.float64] = self._rates[
            slots, (step - since)[slots] + np.arange(steps)[:, None]
        ]
        return found
