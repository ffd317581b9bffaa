"""Which rows a member trains on, and in what order."""

import numpy as np
import pytest

from sweep.problem.randomness import permutation
from sweep.training.batches import BatchOrders
from sweep.training.lanes_member import Lane, LaneModel
from sweep.training.lanes_seats import RATES_AHEAD, Seats
from sweep.training.member import Member, learning_rate_at, make_plan
from tests.training.trials import BASE, experiment, merge


def plan_of(**train):
    exp = experiment(merge(BASE, train=train))
    member = Member(0, 1, exp.spec.setting({"learning_rate": 0.1}))
    return exp, member, make_plan(exp.problem, exp.spec, member, rows_interact=False)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batches_are_those_of_the_epoch_s_permutation(batch_size):
    exp, member, plan = plan_of(batch_size=batch_size)
    train = exp.problem.folds[1].train
    for epoch in (0, 3):
        rows = plan.rows_of(5, member.fold, epoch)
        assert (rows == train[permutation(5, member.fold, epoch, len(train))]).all()


@pytest.mark.parametrize("batch_size", ["full", 10_000])
def test_a_batch_of_all_rows_has_them_as_they_come_in_every_epoch(batch_size):
    exp, member, plan = plan_of(batch_size=batch_size)
    train = exp.problem.folds[1].train
    assert plan.is_full_batch and plan.steps_per_epoch == 1
    orders = BatchOrders(exp, batch=len(train) + 3)
    places = {orders.acquire(member.fold, epoch, plan) for epoch in range(4)}
    assert len(places) == 1
    rows = orders.batches[places.pop()].flatten().tolist()
    assert rows == [*train, *train[[0, 0, 0]]]
    assert (plan.rows_of(5, member.fold, 2) == train).all()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_a_lane_s_learning_rates_are_those_of_its_steps(schedule):
    """Whatever the chunks they are asked for in."""
    epochs = 2 * RATES_AHEAD
    exp, member, plan = plan_of(batch_size="full", epochs=epochs, schedule=schedule)
    seats, found = Seats(), []
    seats.resize([], 2)
    seats.take(1, Lane(LaneModel.build(exp, member)), order=0)
    for steps in np.random.default_rng(0).integers(1, 100, size=1000):
        steps = min(int(steps), seats.steps_left())
        found += seats.rates(steps)[:, 1].tolist()
        seats.advance(steps)
    expected = learning_rate_at(np.arange(plan.steps), member.setting, plan)
    assert found == expected.tolist()
