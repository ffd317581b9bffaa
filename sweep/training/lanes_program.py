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
from collections.abc import Callable

from sweep.training.batches import BatchOrders, FoldTable
from sweep.training.experiment import Experiment
from sweep.training.lanes_bank import LEAST_LANES, SCORING, Bank, Equipment
from sweep.training.lanes_begin import Beginning
from sweep.training.lanes_brief import brief
from sweep.training.lanes_evaluate import Evaluation
from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_step import LaneStep, State
from sweep.training.lanes_stepper import Stepper
from sweep.training.lanes_trace import Traced
from sweep.training.member import Event
from sweep.training.threads import Workers, on_threads

SLICE_SECONDS = 0.2
"""`advance` returns at least this often, so that its caller stays responsive."""


class Program:
    """Members who wait, banks of slots, and the step that trains them all.

    Compiled, the lanes are in two banks: while one is looked at, scored and filled, the cores step
    the other.
    """

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
        self.limits: dict[tuple[int, int], int] = {}
        start = model.start
        step = LaneStep(experiment, start.module, start.penalized, setting)
        rows = max(len(fold.train) for fold in experiment.problem.folds)
        batch = min(setting.batch_size or rows, rows)
        if start.traits.rows_interact:
            batch = model.plan.batch
        table = FoldTable.of(experiment)
        workers = workers or Workers(experiment.device)
        self.stepper = Stepper(
            step,
            table,
            compile_when,
            brief=lambda: brief(experiment, model, batch),
            more=self._scoring_source,
            workers=workers,
        )
        self.evaluation = Evaluation(experiment, start.module, table, workers)
        equipment = Equipment(
            experiment,
            self.stepper,
            self.evaluation,
            BatchOrders(experiment, batch),
            Beginning(experiment, model, step),
            start.penalized,
            self.limits,
        )
        self.banks = deque([Bank(equipment)])
        self.to_come = 0.0
        self.most_used = 0
        """Slots there have been at most."""

    @property
    def slots(self) -> int:
        return sum(len(bank.seats) for bank in self.banks)

    @property
    def pending(self) -> int:
        return len(self.waiting) + sum(len(bank.seats.taken) for bank in self.banks)

    @property
    def trained(self) -> int:
        """Updates of members so far."""
        return sum(bank.trained for bank in self.banks)

    def models(self) -> list[LaneModel]:
        lanes = (lane for bank in self.banks for lane in bank.seats.lanes)
        seated = [lane.model for lane in lanes if lane is not None]
        return seated + list(self.waiting)

    def limit(self, name: tuple[int, int], steps: int) -> None:
        """The member of this name, if it is here, ends once it has tried so many updates."""
        if not any(model.member.name == name for model in self.models()):
            return
        self.limits[name] = steps
        for bank in self.banks:
            if (slot := bank.seats.slot_of(name)) is not None:
                bank.seats.table["limit"][slot] = steps

    def remove(self, name: tuple[int, int]) -> None:
        for bank in self.banks:
            if (slot := bank.seats.slot_of(name)) is not None:
                bank.free(slot)
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
                bank = self.banks[0]
                self.banks.rotate(-1)
                events = bank.finish()
                if len(self.banks) == 1 and self._is_worth_two():
                    events += bank.ends.settle()
                    self.banks.append(bank.divide())
                bank.fill(self.waiting, self._share())
                self.most_used = max(self.most_used, self.slots)
                bank.begin(self._steps_left())
                events += bank.ends.settle()
                if time.monotonic() > until:
                    break
        return events

    def _is_worth_two(self) -> bool:
        """Whether either of two banks would keep all threads busy."""
        least = 2 * LEAST_LANES * self.stepper.threads
        return self.stepper.is_compiled and min(self.pending, self.max_slots) >= least

    def _share(self) -> int:
        """Slots that a bank may have: it leaves as many members to the others."""
        n = len(self.banks)
        share = min(-(-self.pending // n), self.max_slots // n)
        # The compiled step takes two lanes or more.
        return max(share, min(2, self.max_slots))

    def _scoring_source(self, state: State) -> dict[str, Callable[[], Traced]]:
        source = self.evaluation.source(state)
        return {} if source is None else {SCORING: source}

    def _steps_left(self) -> float:
        """Steps of one lane that are to come, as far as is known."""
        left = sum(bank.seats.steps_left() for bank in self.banks)
        left += sum(model.plan.steps for model in self.waiting)
        return left + self.to_come * left / max(1, self.pending)
