"""The reference engine in several processes: the events of one process, in its order, sooner.

Members are dealt out in the order in which one process would begin them, and train ahead of what
has been asked for. An event is given out when it is the next one that a single process would
have come to, so that nothing depends on which process was quicker.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import torch

from sweep.training.device import CPU
from sweep.training.experiment import Experiment
from sweep.training.member import Done, Event, Failure, Member, Outcome
from sweep.training.memory import SHARE, free_bytes, slot_bytes
from sweep.training.processes import Processes, Worker, possible
from sweep.training.reference import SLICE_SECONDS, ReferenceEngine
from sweep.training.threads import on_threads
from sweep.training.worker import Name

GLANCE_SECONDS = 1.0
"""Trained before it is judged how long the rest takes."""
WORKER_BYTES = 200 << 20
"""Of a process beside its model."""
START_SECONDS = 5.0
"""From the start of processes until they train."""
MOST_STILLBORN = 3
"""So many workers may die, one after the other, before they train."""


def is_worth(seconds: float, processes: int) -> bool:
    """Whether so much training of one process is better left to several."""
    return seconds * (1 - 1 / processes) > 2 * START_SECONDS


@dataclass
class _Pending:
    """A member whose end has not been given out. `known` events, each with its step, wait; the
    first `again` events to come are known from a start that was lost.
    """

    member: Member
    limit: int | None = None
    given: int = 0
    known: deque[tuple[int, Event]] = field(default_factory=deque)
    again: int = 0
    step: int = 0
    ticket: int = -1
    worker: Worker | None = None

    @property
    def has_ended(self) -> bool:
        return bool(self.known) and isinstance(self.known[-1][1], Done)

    @property
    def turn(self) -> tuple[int, int, int]:
        """In the order of `ReferenceEngine.turn`."""
        return self.member.trial, self.given, self.member.fold


class ReferencePool:
    """`ReferenceEngine` in as many processes as torch may use threads, one thread each.

    It begins in this process, and goes on in others once what is left is measured to be worth
    their start (`start`: auto; or always, never). A worker that dies fails the member that it
    was training, and is replaced; its other members begin again.
    """

    def __init__(
        self,
        experiment: Experiment,
        notice: Callable[[str], None] = lambda text: None,
        processes: int | None = None,
        start: str = "auto",
        memory: int | None = None,
    ) -> None:
        self.experiment, self.notice, self.start = experiment, notice, start
        self.memory = int(SHARE * free_bytes(experiment.device)) if memory is None else memory
        self.processes = torch.get_num_threads() if processes is None else processes
        # A copy of a process cannot use a GPU.
        if not possible() or start == "never" or experiment.device != CPU:
            self.processes = 1
        # Rounding may depend on the number of threads, and must not on when processes start.
        self._threads = 1 if self.processes > 1 else None
        self._members: dict[Name, _Pending] = {}
        self._waiting: list[Name] = []
        self._tickets = itertools.count()
        self._here: ReferenceEngine | None = ReferenceEngine(experiment)
        self._others: Processes | None = None
        self._seconds = 0.0
        self._to_come = 0
        self._stillborn = 0

    @property
    def pending(self) -> int:
        return len(self._members)

    @property
    def steps(self) -> int:
        """Updates that this process has taken."""
        return 0 if self._here is None else self._here.steps

    @property
    def workers(self) -> list[Worker]:
        """The processes that train; none as long as this one does."""
        return [] if self._others is None or self._here is not None else self._others.workers

    def add(self, member: Member) -> None:
        self._members[member.name] = _Pending(member)
        self._begin(self._members[member.name])

    def expect(self, members: int) -> None:
        """About so many members more are to come: what other processes may be worth."""
        self._to_come = members

    def describe(self) -> str:
        """How members train, in words."""
        if self.workers:
            return f"reference, {len(self.workers)} processes"
        return f"reference, one model at a time{self.experiment.where}"

    def limit(self, name: Name, steps: int) -> None:
        """The member ends, `stopped`, once it has tried `steps` updates."""
        one = self._members.get(name)
        if one is None:
            return
        one.limit = steps
        if self._here is not None:
            self._here.limit(name, steps)
        if one.worker is not None:
            one.worker.tell("limit", name, steps)
        ahead, one.known = one.known, deque()
        for step, event in ahead:
            if not one.has_ended:
                self._learn(one, step, event)

    def remove(self, name: Name) -> None:
        one = self._members.pop(name, None)
        if one is not None:
            self._leave(one)

    def close(self, finish: bool = False) -> None:
        """Ends the other processes; there is nothing to `finish`."""
        if self._others is not None:
            self._others.close()

    def advance(self) -> list[Event]:
        """Trains, or waits for those who do, for a moment."""
        if not self._members:
            return []
        self._change_place()
        if self._here is not None:
            self._train_here(self._here)
        else:
            self._deal()
            is_known = bool(min(self._members.values(), key=lambda one: one.turn).known)
            self._listen(0.0 if is_known else SLICE_SECONDS)
            self._deal()
        return list(self._events())

    def _events(self) -> Iterator[Event]:
        """What one process would have come to next, as far as it is known.

        Up to the end of a member: what follows may depend on what its trial then does.
        """
        while self._members:
            one = min(self._members.values(), key=lambda one: one.turn)
            if not one.known:
                return
            event = one.known.popleft()[1]
            one.given += 1
            if isinstance(event, Done):
                del self._members[one.member.name]
            yield event
            if isinstance(event, Done):
                return

    def _begin(self, one: _Pending) -> None:
        """Has a member trained from its start, in whatever place there is now."""
        one.again, one.worker = one.given + len(one.known), None
        if self._here is None:
            bisect.insort(self._waiting, one.member.name)
            return
        self._here.add(one.member)
        if one.limit is not None:
            self._here.limit(one.member.name, one.limit)

    def _leave(self, one: _Pending) -> None:
        """Nothing more is wanted of a member's training."""
        name = one.member.name
        if self._here is not None:
            self._here.remove(name)
        if one.worker is not None:
            del one.worker.held[one.ticket]
            one.worker.tell("remove", name)
            one.worker = None
        elif name in self._waiting:
            self._waiting.remove(name)

    def _learn(self, one: _Pending, step: int, event: Event) -> None:
        """Takes in what came of a member at some step."""
        one.step = step
        if one.limit is not None and step >= one.limit:
            event = Done(one.member, Outcome(stopped=True))
        one.known.append((step, event))
        if isinstance(event, Done):
            self._leave(one)

    # In this process.

    def _train_here(self, here: ReferenceEngine) -> None:
        name, began = here.turn, time.monotonic()
        with on_threads(self._threads):
            step, event = here.train()
        self._seconds += time.monotonic() - began
        if event is not None:
            self._hear(name, step, event)

    def _change_place(self) -> None:
        """Starts other processes where that pays, and leaves the members to them when they are
        there.
        """
        if self._here is None or self.processes < 2:
            return
        if self._others is None and self._is_worth(self._here):
            self.processes = min(self.processes, self._that_fit())
            if self.processes < 2:
                self.notice("reference engine: one process, since the memory does not fit two")
                return
            self._others = Processes(self.experiment, self.processes)
        if self._others is None or not self._others.ready(None if self.start == "always" else 0.0):
            return
        if self._others.failed is not None:
            self._come_back(f"no other process could train: {self._others.failed}")
            return
        self._here = None
        self.notice(f"reference engine: {self.processes} processes train from now on")
        for one in self._members.values():
            if not one.has_ended:
                self._begin(one)

    def _is_worth(self, here: ReferenceEngine) -> bool:
        if self.start == "always":
            return True
        if self._seconds < GLANCE_SECONDS or not here.trained:
            return False
        all_of_them = here.ended + here.pending + self._to_come
        return is_worth(self._seconds * (all_of_them / here.trained - 1), self.processes)

    def _that_fit(self) -> int:
        """Processes for which there is memory, were all models as large as the next one."""
        member = next(iter(self._members.values())).member
        try:
            module = self.experiment.build_model(member.setting, member.fold)
        except (Exception, SystemExit):
            # The member's own failure, once it is its turn.
            return self.processes
        rows = len(self.experiment.problem.folds[member.fold].train)
        each = slot_bytes(
            module,
            self.experiment.problem.input_shape,
            self.experiment.dtype,
            member.setting.optimizer,
            min(member.setting.batch_size or rows, rows),
        )
        return max(1, self.memory // (WORKER_BYTES + each))

    def _come_back(self, why: str) -> None:
        """Trains in this process again, for good."""
        self.close()
        self.processes = 1
        self.notice(f"reference engine: one process, since {why}")
        if self._here is None:
            self._here, self._waiting = ReferenceEngine(self.experiment), []
            for one in self._members.values():
                if not one.has_ended:
                    self._begin(one)

    # In other processes.

    def _deal(self) -> None:
        """Members in the order of their turn, each to the worker that has the fewest."""
        if not self.workers:
            return
        room = 1 - (-len(self.experiment.problem.folds) // len(self.workers))
        while self._waiting:
            worker = min(self.workers, key=lambda worker: len(worker.held))
            if len(worker.held) >= room:
                return
            one = self._members[self._waiting.pop(0)]
            one.worker, one.ticket = worker, next(self._tickets)
            worker.held[one.ticket] = one.member.name
            worker.tell("add", one.ticket, one.member)
            if one.limit is not None:
                worker.tell("limit", one.member.name, one.limit)

    def _listen(self, timeout: float) -> None:
        """Takes in what the workers have said, or say within `timeout` seconds."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                while connection.poll():
                    ticket, *news = connection.recv()
                    if not news:
                        worker.trains = ticket
                    elif ticket in worker.held:
                        self._hear(worker.held[ticket], *news)
            except (EOFError, OSError):
                self._replace(worker)

    def _hear(self, name: Name, step: int, event: Event) -> None:
        one = self._members[name]
        if one.again and not isinstance(event, Done):
            one.again -= 1
        else:
            self._learn(one, step, event)

    def _replace(self, worker: Worker) -> None:
        """A worker died: what it was training has failed, the rest begins again."""
        assert self._others is not None
        self._stillborn = 0 if worker.trains is not None else self._stillborn + 1
        why = None
        try:
            how = self._others.replace(worker)
            if self._stillborn == MOST_STILLBORN:
                why = f"process after process {how}"
        except (EOFError, OSError):
            how, why = "died", "the processes that trained have died"
        for ticket, name in worker.held.items():
            one = self._members[name]
            if ticket == worker.trains:
                one.known.append((one.step, Done(one.member, _loss(one, how))))
                one.worker = None
            else:
                self._begin(one)
        if why is not None:
            self._come_back(why)


def _loss(one: _Pending, how: str) -> Outcome:
    """Of a member whose process ended under it, after `how` in words."""
    epoch = one.given + len(one.known)
    text = f"the process that trained this model {how}"
    if "SIGKILL" in how:
        text += ", as the system does when memory runs out"
    return Outcome(failure=Failure("error", "process_died", one.member.fold, epoch, one.step, text))
