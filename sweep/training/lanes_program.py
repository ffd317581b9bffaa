"""One vmapped program: members of equal shapes, a lane each, stepped together.

Models, losses, penalties, updates and divergence rules are written for one model; this file maps
them over lanes, and nothing else does. Each lane has its own parameters, optimizer state,
learning rate, step counter, batch order and divergence watch. A lane whose member finished or
diverged is given to the next waiting member; until then it computes garbage that nobody reads,
and since no operation mixes lanes, garbage (NaN included) stays in its lane.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from sweep.training.batches import BatchOrders, FoldTable
from sweep.training.device import moved
from sweep.training.diagnosis import diagnose
from sweep.training.divergence import CODES, Reason, Watch, new_watch, tensor_sizes
from sweep.training.experiment import Experiment
from sweep.training.lanes_brief import brief
from sweep.training.lanes_evaluate import Evaluation
from sweep.training.lanes_member import Lane, LaneModel
from sweep.training.lanes_scoring import make_outcome
from sweep.training.lanes_step import LaneStep, State, Tensors
from sweep.training.lanes_stepper import Chunk, Stepper
from sweep.training.lanes_trace import Traced
from sweep.training.member import Done, Epoch, Event, Outcome
from sweep.training.optimizers import new_moments, numbers, trainable
from sweep.training.penalty import aligned
from sweep.training.reference import error_failure
from sweep.training.scoring import ScoreUndefined

SLICE_SECONDS = 0.2
"""`advance` returns at least this often, so that its caller stays responsive."""
SOON = 64
"""Steps that a free slot waits for the end of the others' epoch: lanes that end their epochs
together are looked at and scored together."""
SCORING = "scoring"
SHRINK = 0.75
"""With this share of its slots in use or less, a program that has no one waiting drops the rest."""


class Program:
    """Slots, who is in them, and the step that trains them all."""

    def __init__(
        self, experiment: Experiment, model: LaneModel, slots: int, compile_when: str = "never"
    ) -> None:
        setting = model.member.setting
        self.experiment, self.max_slots = experiment, slots
        self.waiting: deque[LaneModel] = deque()
        self.lanes: list[Lane | None] = []
        self.limits: dict[tuple[int, int], int] = {}
        self.penalized = model.penalized
        step = LaneStep(experiment, model.module, model.penalized, setting)
        self.template = step.template
        parameters: Tensors = {n: p.detach() for n, p in trainable(model.module).items()}
        self.names = list(parameters)
        # What every member starts with, whatever its setting.
        self.moments = new_moments(parameters, setting.optimizer, step.clips)
        self.watch = new_watch(tensor_sizes(parameters))
        rows = max(len(fold.train) for fold in experiment.problem.folds)
        self.batch = min(setting.batch_size or rows, rows)
        if model.rows_interact:
            self.batch = model.plan.batch
        table = FoldTable.of(experiment)
        self.stepper = Stepper(
            step,
            table,
            compile_when,
            brief=lambda: brief(experiment, model, self.batch),
            more=self._scoring_source,
        )
        self.asked = experiment.all_scores
        self.evaluation = Evaluation(experiment, model.module, table, self.stepper.pool)
        self.orders = BatchOrders(experiment, self.batch)
        self.state: State | None = None
        self.best: Tensors = {}
        self.to_come = 0.0
        self.trained = 0
        """Updates of members so far."""

    @property
    def pending(self) -> int:
        return len(self.waiting) + sum(lane is not None for lane in self.lanes)

    def models(self) -> list[LaneModel]:
        return [lane.model for lane in self.lanes if lane is not None] + list(self.waiting)

    def remove(self, name: tuple[int, int]) -> None:
        for slot, lane in enumerate(self.lanes):
            if lane is not None and lane.model.member.name == name:
                self._free(slot)
        self.waiting = deque(m for m in self.waiting if m.member.name != name)
        self.limits.pop(name, None)

    def advance(self) -> list[Event]:
        """Trains until something happens, or for `SLICE_SECONDS`."""
        until = time.monotonic() + SLICE_SECONDS
        events: list[Event] = []
        while not events:
            self._fill()
            if not any(self.lanes):
                break
            self._train_chunk()
            events = self._look()
            if time.monotonic() > until:
                break
        return events

    # Slots.

    def _fill(self) -> None:
        """Gives free slots to waiting members, and drops slots that nobody needs."""
        used = [slot for slot, lane in enumerate(self.lanes) if lane is not None]
        new = min(len(self.waiting), self.max_slots - len(used))
        if new and self._epoch_ends_soon() and 2 * len(used) >= len(self.lanes):
            new = 0
        # The compiled step takes two lanes or more.
        wanted = max(len(used) + new, min(2, self.max_slots))
        if wanted > len(self.lanes) or wanted <= SHRINK * len(self.lanes):
            self._resize(used, wanted)
        free = [slot for slot, lane in enumerate(self.lanes) if lane is None]
        if new:
            self._load([(slot, self.waiting.popleft()) for slot in free[:new]])

    def _epoch_ends_soon(self) -> bool:
        """Whether some lane is in the midst of an epoch, and not far from its end."""
        left = [
            lane.model.plan.steps_per_epoch - lane.step_in_epoch
            for lane in self.lanes
            if lane is not None and lane.step_in_epoch
        ]
        return bool(left) and min(left) <= SOON

    def _resize(self, used: Sequence[int], size: int) -> None:
        self.lanes = [self.lanes[slot] for slot in used] + [None] * (size - len(used))
        if self.state is None:
            return
        kept = self._index([*used, *[0] * (size - len(used))])
        self.state = tree_map_only(Tensor, lambda t: t[kept], self.state)
        self.best = {name: t[kept] for name, t in self.best.items()}

    def _load(self, new: Sequence[tuple[int, LaneModel]]) -> None:
        """Puts fresh members into slots, all of them with one copy a tensor."""
        states = [self._fresh(model) for _, model in new]
        stacked = tree_map(
            lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0],
            *states,
        )
        stacked = moved(stacked, self.experiment.device)
        slots = self._index([slot for slot, _ in new])
        if self.state is None:
            size = len(self.lanes)
            self.state = tree_map_only(Tensor, lambda t: t.new_zeros(size, *t.shape[1:]), stacked)
        tree_map(
            lambda whole, part: (
                whole.index_copy_(0, slots, part) if isinstance(whole, Tensor) else whole
            ),
            self.state,
            stacked,
        )
        for slot, model in new:
            self.lanes[slot] = Lane(model, self.orders.acquire(model.member.fold, 0, model.plan))

    def _fresh(self, model: LaneModel) -> State:
        dtype, setting = self.experiment.dtype, model.member.setting
        module = model.module
        parameters: Tensors = {name: p.detach() for name, p in trainable(module).items()}
        frozen = {n: p.detach() for n, p in module.named_parameters() if n not in parameters}
        return State(
            parameters=parameters,
            buffers={**frozen, **dict(module.named_buffers())},
            moments=self.moments,
            watch=self.watch._replace(sizes=tensor_sizes(parameters)),
            numbers=numbers(setting, dtype),
            penalty=aligned(model.penalty, self.template),
        )

    def _index(self, slots: Sequence[int]) -> Int[Tensor, " k"]:
        return torch.tensor(slots, dtype=torch.int64, device=self.experiment.device)

    def _free(self, slot: int) -> None:
        lane = self.lanes[slot]
        assert lane is not None
        self.orders.release(lane.order)
        self.limits.pop(lane.model.member.name, None)
        self.lanes[slot] = None

    # Training.

    def _train_chunk(self) -> None:
        """Steps every lane until the first of them ends an epoch or meets its limit."""
        active = [lane for lane in self.lanes if lane is not None]
        steps = self.stepper.steps_at_once
        for lane in active:
            steps = min(steps, lane.model.plan.steps_per_epoch - lane.step_in_epoch)
            limit = self.limits.get(lane.model.member.name)
            if limit is not None:
                steps = min(steps, limit - lane.step)
        if steps <= 0:
            return
        assert self.state is not None
        self.state = self.stepper.run(self.state, self._chunk(steps), self._steps_left())
        self.evaluation.compiled = self.stepper.compiled(SCORING)
        self.evaluation.traced = self.stepper.traced(SCORING)
        for lane in active:
            lane.step += steps
        self.trained += steps * len(active)

    def _scoring_source(self, state: State) -> dict[str, Callable[[], Traced]]:
        source = self.evaluation.source(state)
        return {} if source is None else {SCORING: source}

    def _steps_left(self) -> float:
        """Steps of all slots together that are to come, as far as is known."""
        left = [lane.model.plan.steps - lane.step for lane in self.lanes if lane is not None]
        left += [model.plan.steps for model in self.waiting]
        average = sum(left) / max(1, len(left))
        return (sum(left) + self.to_come * average) / len(self.lanes)

    def _chunk(self, steps: int) -> Chunk:
        """What the next steps of all lanes are given."""
        # An empty slot computes what some member computes, and nobody looks.
        lanes = [lane for lane in self.lanes if lane is not None]
        seats = [lane if lane is not None else lanes[0] for lane in self.lanes]
        numbers = np.array(
            [
                (
                    lane.model.member.fold,
                    lane.order,
                    lane.step,
                    lane.step_in_epoch,
                    lane.model.plan.batch,
                    len(lane.model.plan.train),
                )
                for lane in seats
            ],
            dtype=np.int64,
        )
        device = self.experiment.device
        given = torch.from_numpy(numbers).to(device)
        folds, places, start, within, per_batch, n_rows = given.unbind(1)
        rates = np.stack([lane.rates(steps) for lane in seats], axis=1)
        ahead = torch.arange(steps, device=device).unsqueeze(1)
        begin = ((within + ahead) * self.batch).unsqueeze(2)
        return Chunk(
            folds=folds.contiguous(),
            rows=self.orders.rows[
                places.view(1, -1, 1), begin + torch.arange(self.batch, device=device)
            ],
            n_rows=torch.minimum(per_batch, n_rows - (within + ahead) * per_batch),
            step=start + ahead,
            learning_rate=torch.from_numpy(rates).to(device, self.experiment.dtype),
        )

    # Looking.

    def _look(self) -> list[Event]:
        """What happened in the last chunk: divergence, ends of epochs, limits."""
        assert self.state is not None
        events: list[Event] = []
        codes = self.state.watch.code.tolist()
        ended: list[int] = []
        for slot, lane in enumerate(self.lanes):
            if lane is None:
                continue
            plan = lane.model.plan
            if codes[slot]:
                events.append(Done(lane.model.member, self._diagnosis(slot, lane)))
                self._free(slot)
            elif lane.step and lane.step % plan.steps_per_epoch == 0:
                ended.append(slot)
        if ended:
            events += self._end_epoch(ended)
        for slot, lane in enumerate(self.lanes):
            if lane is not None and lane.step >= self.limits.get(lane.model.member.name, math.inf):
                events.append(Done(lane.model.member, Outcome(stopped=True)))
                self._free(slot)
        return events

    def _diagnosis(self, slot: int, lane: Lane, reason: Reason | None = None) -> Outcome:
        assert self.state is not None
        watch: Watch = tree_map(lambda t: t[slot].cpu(), self.state.watch)
        if reason is not None:
            watch = watch._replace(code=torch.tensor(CODES.index(reason) + 1))
        model = lane.model
        return Outcome(failure=diagnose(watch, self.names, model.member, model.plan))

    def _end_epoch(self, slots: Sequence[int]) -> list[Event]:
        seats = {slot: lane for slot in slots if (lane := self.lanes[slot]) is not None}
        events: list[Event] = []
        assert self.state is not None
        is_last = any(lane.epoch == lane.model.plan.epochs for lane in seats.values())
        asked = self.asked if is_last else self.asked[:1]
        scores = self.evaluation.scores(seats, self.state, "test", asked)
        held = self.evaluation.held_out_losses(seats, self.state)
        finished: list[int] = []
        for slot, lane in seats.items():
            member, plan, score = lane.model.member, lane.model.plan, scores[slot][0]
            if isinstance(score, ScoreUndefined) or not math.isfinite(score):
                if isinstance(score, ScoreUndefined):
                    failure = error_failure(score, member, lane.epoch - 1, lane.step)
                    events.append(Done(member, Outcome(failure=failure)))
                else:
                    outcome = self._diagnosis(slot, lane, Reason.NONFINITE_SCORE)
                    events.append(Done(member, outcome))
                self._free(slot)
                continue
            epoch = lane.epoch - 1
            events.append(Epoch(member, epoch, score))
            stop = lane.epoch == plan.epochs
            rule = member.setting.early_stopping
            if rule is not None:
                if lane.best_epoch < 0 or held[slot] < lane.best - rule.min_delta:
                    lane.best, lane.best_epoch = held[slot], epoch
                    self._keep_best(slot)
                stop = stop or epoch - lane.best_epoch >= rule.patience
            if stop:
                finished.append(slot)
            else:
                before, lane.order = lane.order, self.orders.acquire(member.fold, lane.epoch, plan)
                self.orders.release(before)
        if finished:
            events += self._finish({slot: seats[slot] for slot in finished}, scores)
        return events

    def _keep_best(self, slot: int) -> None:
        assert self.state is not None
        tensors = {**self.state.parameters, **self.state.buffers}
        for name, t in tensors.items():
            if name not in self.best:
                self.best[name] = torch.zeros_like(t)
            self.best[name][slot] = t[slot]

    def _finish(
        self, lanes: dict[int, Lane], known: Mapping[int, list[float | ScoreUndefined]]
    ) -> list[Event]:
        """Final scores of members that trained to their end, with the best epoch's weights.

        `known`: their scores after the last epoch, all of them unless it may not be the best.
        """
        assert self.state is not None
        slots = self._index(list(lanes))
        if self.best:
            for name, t in {**self.state.parameters, **self.state.buffers}.items():
                t[slots] = self.best[name][slots]
        test = known
        if self.best:
            test = self.evaluation.scores(lanes, self.state, "test", self.asked)
        train = self.evaluation.scores(lanes, self.state, "train", self.asked[:1])
        nonzero = torch.zeros_like(slots)
        for name in self.penalized:
            weights = self.state.parameters[name][slots].flatten(1)
            nonzero += torch.count_nonzero(weights, dim=1)
        events: list[Event] = []
        for (slot, lane), n in zip(lanes.items(), nonzero.tolist(), strict=True):
            member, at = lane.model.member, (lane.epoch - 1, lane.step)
            outcome = make_outcome(member, at, self.asked, test[slot], train[slot][0], n)
            events.append(Done(member, outcome))
            self._free(slot)
        return events
