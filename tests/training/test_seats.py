"""Laws of `Seats`: what it says of all slots at once is what each lane says of itself."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.training.lanes_member import Lane, LaneModel
from sweep.training.lanes_seats import NEVER, Seats
from sweep.training.member import Member, learning_rate_at

from .trials import BASE, experiment, merge


@pytest.fixture(scope="module")
def models():
    """Of two batch sizes, so that epochs end at different steps."""
    made = []
    for batch_size in (16, 40):
        train = {"batch_size": batch_size, "schedule": "cosine"}
        exp = experiment(merge(BASE, train=train))
        for trial in range(20):
            setting = exp.spec.setting({"learning_rate": 0.01 * (trial + 1)})
            member = Member(100 * batch_size + trial, trial % 3, setting)
            made.append(LaneModel.build(exp, member))
    return made


class Seated:
    """One lane by itself."""

    def __init__(self, model, order, limit):
        self.model, self.order, self.limit, self.step = model, order, limit, 0
        self.per_epoch, self.steps = model.plan.steps_per_epoch, model.plan.steps

    @property
    def within(self):
        return self.step % self.per_epoch


@given(st.randoms(use_true_random=False))
def test_all_slots_at_once_are_each_by_itself(models, random: random.Random):
    seats, alone = Seats(), []
    waiting = random.sample(models, len(models))
    for _ in range(30):
        act = random.choice(["take", "take", "leave", "resize", "advance", "advance"])
        taken = [slot for slot, one in enumerate(alone) if one]
        free = [slot for slot, one in enumerate(alone) if not one]
        if act == "take" and free and waiting:
            slot, limit = random.choice(free), random.choice([NEVER, 3, 7])
            alone[slot] = Seated(waiting.pop(), random.randrange(5), limit)
            seats.take(slot, Lane(alone[slot].model), alone[slot].order, limit)
        elif act == "leave" and taken:
            slot = random.choice(taken)
            alone[slot] = None
            seats.leave(slot)
        elif act == "resize":
            random.shuffle(taken)
            size = len(taken) + random.randrange(4)
            alone = [alone[slot] for slot in taken] + [None] * (size - len(taken))
            seats.resize(taken, size)
        elif act == "advance" and taken:
            steps = max(1, seats.steps_to_come(random.randrange(1, 9)))
            seats.advance(steps)
            for slot in taken:
                alone[slot].step += steps
        check(seats, alone)


def check(seats, alone):
    taken = {slot: one for slot, one in enumerate(alone) if one}
    assert len(seats) == len(alone) and seats.taken.tolist() == list(taken)
    assert seats.free.tolist() == [slot for slot in range(len(alone)) if slot not in taken]
    assert all(seats.lane(slot).model is one.model for slot, one in taken.items())
    assert all(seats.slot_of(one.model.member.name) == slot for slot, one in taken.items())
    assert seats.slot_of((-1, 0)) is None
    assert seats.steps_left() == sum(one.steps - one.step for one in taken.values())
    left = [min(one.per_epoch - one.within, one.limit - one.step) for one in taken.values()]
    assert seats.steps_to_come(5) == min([5, *left])
    to_end = [one.per_epoch - one.within if one.within else 0 for one in taken.values()]
    assert seats.nearest_end() == min(to_end, default=None)
    ended = [slot for slot, one in taken.items() if one.step and not one.within]
    assert seats.at_epochs_end().tolist() == ended
    assert seats.at_limit().tolist() == [s for s, one in taken.items() if one.step >= one.limit]
    if not taken:
        return
    first = next(iter(taken))
    seated = [slot if slot in taken else first for slot in range(len(alone))]
    assert seats.seated().tolist() == seated
    expected = []
    for one in (alone[slot] for slot in seated):
        steps = np.arange(one.step, one.step + 3)
        expected.append(learning_rate_at(steps, one.model.member.setting, one.model.plan))
    assert (seats.rates(3) == np.stack(expected, axis=1)).all()
