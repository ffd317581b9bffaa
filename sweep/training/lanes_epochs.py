"""What becomes of lanes that end an epoch: they are scored, and go on or are done.

Where scores are compiled they are computed from a copy, and the lanes' next steps begin before they
are known. Elsewhere, and where what they come to decides whether a member goes on (early stopping),
they are awaited first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sweep.training.batches import BatchOrders
from sweep.training.diagnosis import diagnose
from sweep.training.divergence import CODES, Reason, Watch
from sweep.training.experiment import Experiment
from sweep.training.lanes_evaluate import Evaluation, Scores
from sweep.training.lanes_member import Lane, LaneModel
from sweep.training.lanes_scoring import make_outcome
from sweep.training.lanes_seats import Seats
from sweep.training.lanes_step import State, Tensors
from sweep.training.member import Done, Epoch, Event, Outcome
from sweep.training.reference import error_failure
from sweep.training.scoring import ScoreUndefined


class _Ended(NamedTuple):
    """A lane after an epoch. `place`: where in `_Scored.state` its tensors are."""

    slot: int
    lane: Lane
    place: int
    step: int
    is_last: bool

    @property
    def at(self) -> tuple[int, int]:
        """(epoch, step)"""
        return self.step // self.lane.model.plan.steps_per_epoch - 1, self.step


@dataclass
class _Scored:
    """Lanes whose scores are on their way."""

    ended: list[_Ended]
    state: State
    test: Callable[[], Scores]
    train: Callable[[], Scores]


class EpochEnds:
    """Ends of epochs of one program's lanes.

    `leave` frees a slot. Between `begin` and `settle` the state may only change where
    `are_apart`.
    """

    def __init__(
        self,
        experiment: Experiment,
        evaluation: Evaluation,
        seats: Seats,
        orders: BatchOrders,
        penalized: Sequence[str],
        leave: Callable[[int], None],
    ) -> None:
        self.asked = experiment.all_scores
        self.evaluation, self.seats, self.orders = evaluation, seats, orders
        self.penalized, self.leave = penalized, leave
        self.best: Tensors = {}
        """Of members that stop early, the weights after their best epoch, by slot."""
        self._scored: _Scored | None = None

    @property
    def are_apart(self) -> bool:
        """Whether lanes may go on while their scores are computed."""
        return self.evaluation.compiled is not None and not self.best

    def begin(self, state: State, slots: Sequence[int]) -> None:
        """Has these lanes scored. Those whose last epoch it was leave their slots, the others get
        the rows of the next.
        """
        if self.are_apart:
            # The lanes of a fold are scored together: side by side, they need no other copy.
            slots = sorted(slots, key=self.seats.table["fold"].__getitem__)
        lanes = [self.seats.lane(slot) for slot in slots]
        table = self.seats.table[slots]
        steps, is_last = table["step"].tolist(), (table["step"] == table["steps"]).tolist()
        places = list(slots)
        if any(lane.model.member.setting.early_stopping for lane in lanes):
            self._make_room_for_best(state)
        if self.are_apart:
            state, places = _copied(state, slots), list(range(len(slots)))
        ended = [*map(_Ended, slots, lanes, places, steps, is_last)]
        by_place = {one.place: one.lane for one in ended}
        of_last = {one.place: one.lane for one in ended if one.is_last}
        asked = self.asked if of_last else self.asked[:1]
        test = self.evaluation.begin(by_place, state, "test", asked)
        alone = {} if self.best else of_last
        train = self.evaluation.begin(alone, state, "train", self.asked[:1])
        self._scored = _Scored(ended, state, test, train)
        for one in ended:
            if one.is_last:
                self.leave(one.slot)
                continue
            member, order = one.lane.model.member, self.seats.table["order"]
            before = int(order[one.slot])
            epoch = one.at[0] + 1
            order[one.slot] = self.orders.acquire(member.fold, epoch, one.lane.model.plan)
            self.orders.release(before)

    def settle(self) -> list[Event]:
        """What came of the lanes that `begin` was given last: it waits for their scores."""
        scored, self._scored = self._scored, None
        if scored is None:
            return []
        scores = scored.test()
        by_place = {one.place: one.lane for one in scored.ended}
        held = self.evaluation.held_out_losses(by_place, scored.state)
        events: list[Event] = []
        finished: list[_Ended] = []
        for one in scored.ended:
            member, score = one.lane.model.member, scores[one.place][0]
            if isinstance(score, ScoreUndefined) or not math.isfinite(score):
                events.append(Done(member, self._failure(one, score, scored.state)))
                self._leave(one)
                continue
            events.append(Epoch(member, one.at[0], score))
            stops = self._stops_early(one, held, scored.state)
            if stops or one.is_last:
                finished.append(one)
        if finished:
            events += self._finish(finished, scored, scores)
        return events

    def resize(self, kept: Tensor) -> None:
        """The slots are other ones now."""
        self.best = {name: t[kept] for name, t in self.best.items()}

    def _leave(self, one: _Ended) -> None:
        # It may have been given another one since.
        slot = self.seats.slot_of(one.lane.model.member.name)
        if slot is not None:
            self.leave(slot)

    def _failure(self, one: _Ended, score: float | ScoreUndefined, state: State) -> Outcome:
        if isinstance(score, ScoreUndefined):
            return Outcome(failure=error_failure(score, one.lane.model.member, *one.at))
        return diagnosis(state.watch, one.place, one.lane.model, Reason.NONFINITE_SCORE)

    def _make_room_for_best(self, state: State) -> None:
        if not self.best:
            tensors = {**state.parameters, **state.buffers}
            self.best = {name: torch.zeros_like(t) for name, t in tensors.items()}

    def _stops_early(self, one: _Ended, held: dict[int, float], state: State) -> bool:
        """Whether its patience is at an end; a best epoch's weights are kept."""
        lane, rule, epoch = one.lane, one.lane.model.member.setting.early_stopping, one.at[0]
        if rule is None:
            return False
        if lane.best_epoch < 0 or held[one.place] < lane.best - rule.min_delta:
            lane.best, lane.best_epoch = held[one.place], epoch
            for name, t in {**state.parameters, **state.buffers}.items():
                self.best[name][one.slot] = t[one.place]
        return epoch - lane.best_epoch >= rule.patience

    def _finish(self, finished: list[_Ended], scored: _Scored, test: Scores) -> list[Event]:
        """Final scores of members that trained to their end, with the best epoch's weights."""
        state = scored.state
        first = next(iter(state.parameters.values()))
        places = torch.tensor([one.place for one in finished], device=first.device)
        if self.best:
            for name, t in {**state.parameters, **state.buffers}.items():
                t[places] = self.best[name][places]
            by_place = {one.place: one.lane for one in finished}
            test = self.evaluation.scores(by_place, state, "test", self.asked)
            train = self.evaluation.scores(by_place, state, "train", self.asked[:1])
        else:
            train = scored.train()
        nonzero = torch.zeros_like(places)
        for name in self.penalized:
            nonzero += torch.count_nonzero(state.parameters[name][places].flatten(1), dim=1)
        events: list[Event] = []
        for one, n in zip(finished, nonzero.tolist(), strict=True):
            member, known = one.lane.model.member, (test[one.place], train[one.place][0])
            events.append(Done(member, make_outcome(member, one.at, self.asked, *known, n)))
            self._leave(one)
        return events


def diagnosis(watch: Watch, place: int, model: LaneModel, reason: Reason | None = None) -> Outcome:
    """How the lane whose part of `watch` is at this place diverged: as it says, or by `reason`."""
    own = Watch(*(t[place].cpu() for t in watch))
    if reason is not None:
        own = own._replace(code=torch.tensor(CODES.index(reason) + 1))
    failure = diagnose(own, list(model.start.parameters), model.member, model.plan)
    return Outcome(failure=failure)


def _copied(state: State, slots: Sequence[int]) -> State:
    """What scores are computed from, of these slots alone."""
    index = torch.tensor(slots)

    def copied(tensors: Tensors) -> Tensors:
        return {name: t.index_select(0, index) for name, t in tensors.items()}

    return state._replace(
        parameters=copied(state.parameters),
        buffers=copied(state.buffers),
        watch=Watch(*(t.index_select(0, index) for t in state.watch)),
    )
