"""The exact solver for many members: those on one fold are lanes of one stack.

A stack takes the iterations of `sweep.training.fista`, and the guesses of `convex_support`, with
all its lanes at once, and lets each go when it is solved, when it is Newton's turn, or when its
iterations are used up. Newton's rounds are one model's affair. Between any two of them `advance`
may return.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from sweep.training.convex_member import CHECK, ConvexMember, ConvexMembers
from sweep.training.convex_newton import Newton, State
from sweep.training.experiment import Experiment
from sweep.training.fista import (
    Point,
    Verdict,
    after_newton,
    iterate,
    look,
    newton_from,
    start_point,
    verdict,
)
from sweep.training.lanes_optimum import outcomes
from sweep.training.lanes_stack import Stack, threads
from sweep.training.member import Done, Epoch, Event, Member, Outcome
from sweep.training.reference import error_failure

SLICE_SECONDS = 0.1
"""`advance` returns about that often."""
STACK_FLOPS = 2e9
"""Of one iteration of a stack, so that it stays a fraction of a slice."""


class Solver:
    """All members that the exact solver is asked for."""

    def __init__(self, experiment: Experiment, slots: int) -> None:
        self.experiment, self.slots = experiment, slots
        self.members = ConvexMembers(experiment)
        self.waiting: deque[Member] = deque()
        self.limits: dict[tuple[int, int], int] = {}
        self._stacks: dict[tuple[int, str, str], Stack] = {}
        self._refined: deque[tuple[ConvexMember, Newton]] = deque()
        self._solved: list[tuple[ConvexMember, Tensor]] = []
        self._turn = 0

    @property
    def in_training(self) -> int:
        stacked = sum(len(stack.tasks) for stack in self._stacks.values())
        return stacked + len(self._refined) + len(self._solved)

    @property
    def pending(self) -> int:
        return len(self.waiting) + self.in_training

    def limit(self, name: tuple[int, int], steps: int) -> None:
        """The member ends, `stopped`, once it has tried so many iterations."""
        if self.pending:
            self.limits[name] = steps

    def remove(self, name: tuple[int, int]) -> None:
        self.waiting = deque(m for m in self.waiting if m.name != name)
        for stack in self._stacks.values():
            stack.keep([i for i, t in enumerate(stack.tasks) if t.member.name != name])
        self._refined = deque(pair for pair in self._refined if pair[0].member.name != name)
        self._solved = [pair for pair in self._solved if pair[0].member.name != name]
        self.limits.pop(name, None)

    def advance(self) -> list[Event]:
        """Solves until something happened, or for `SLICE_SECONDS`."""
        until = time.monotonic() + SLICE_SECONDS
        events: list[Event] = []
        while time.monotonic() < until:
            events += self._fill()
            if self._refined:
                events += self._refine()
            else:
                busy = [stack for stack in self._stacks.values() if stack.tasks]
                if not busy or events:
                    break
                # A stack that has begun has fewer lanes left, and is finished with before the
                # next: its data are at hand, and its lanes are scored together.
                stack = min(busy, key=lambda stack: len(stack.tasks))
                while stack.done < CHECK and time.monotonic() < until:
                    stack.iterate()
                if stack.done == CHECK:
                    events += self._look(stack)
        solved, self._solved = self._solved, []
        for task, outcome in outcomes(self.experiment, solved):
            if outcome.score is not None:
                events.append(Epoch(task.member, 0, outcome.score))
            events.append(self._end(task, outcome))
        return events

    def _end(self, task: ConvexMember, outcome: Outcome) -> Done:
        self.limits.pop(task.member.name, None)
        return Done(task.member, outcome)

    def _fill(self) -> list[Event]:
        """Starts waiting members while there is room for them."""
        events: list[Event] = []
        joining: dict[tuple[int, str, str], list[ConvexMember]] = {}
        while self.waiting and self.in_training + sum(map(len, joining.values())) < self.slots:
            member = self.waiting[0]
            try:
                task = self.members.make(member)
            except MemoryError:
                raise
            except (Exception, SystemExit) as error:
                self.waiting.popleft()
                failure = error_failure(error, member, 0, 0)
                events.append(Done(member, Outcome(failure=failure)))
                continue
            stack = self._stacks.setdefault(task.key, Stack(task.problem.loss))
            inside = len(stack.tasks) + len(joining.get(task.key, []))
            too_many = inside > 0 and (inside + 1) * task.problem.loss.flops > STACK_FLOPS
            if too_many or stack.done:
                break
            self.waiting.popleft()
            joining.setdefault(task.key, []).append(task)
        for key, tasks in joining.items():
            problem = tasks[0].problem
            start = start_point(problem, problem.start, problem.first_step)
            events += self._join(key, tasks, [start] * len(tasks))
        return events

    def _join(
        self, key: tuple[int, str, str], tasks: Sequence[ConvexMember], points: Sequence[Point]
    ) -> list[Event]:
        """Members enter a stack, unless fewer iterations are left than it takes at once."""
        events: list[Event] = []
        if tasks[0].left < CHECK:
            for task, point in zip(tasks, points, strict=True):
                events += self._leave(task, *_last_iterations(task, point))
        else:
            self._stacks[key].join(tasks, points)
        return events

    def _look(self, stack: Stack) -> list[Event]:
        """What becomes of each lane after `CHECK` iterations."""
        assert stack.at is not None
        stack.guess()
        at, stack.done = stack.at, 0
        events: list[Event] = []
        going: list[int] = []
        residuals = at.residual.tolist()
        active = torch.count_nonzero(at.w, dim=(1, 2)).tolist()
        for i, task in enumerate(stack.tasks):
            task.effort.iterated(task.problem, CHECK)
            found = verdict(task, residuals[i], active[i])
            if found is Verdict.GOING and task.left >= CHECK and not self._is_over(task):
                going.append(i)
                continue
            one = Point(*(part[i] for part in at))
            if found is Verdict.GOING and task.left < CHECK:
                # The last few iterations are fewer than the stack takes at once.
                found, one = _last_iterations(task, one)
            events += self._leave(task, found, one)
        stack.keep(going)
        return events

    def _leave(self, task: ConvexMember, found: Verdict, at: Point) -> list[Event]:
        if self._is_over(task) and found is not Verdict.SOLVED:
            return [self._end(task, Outcome(stopped=True))]
        if found is Verdict.FAILED:
            return [self._end(task, Outcome(failure=task.failure(float(at.residual))))]
        if found is Verdict.SOLVED:
            self._solved.append((task, at.w))
        else:
            self._refined.append((task, newton_from(task, at)))
        return []

    def _is_over(self, task: ConvexMember) -> bool:
        limit = self.limits.get(task.member.name)
        return limit is not None and task.effort.iterations >= limit

    def _refine(self) -> list[Event]:
        """One of Newton's rounds, for the member that has waited longest."""
        task, newton = self._refined[0]
        with threads(worth=False):
            state = newton.round()
        task.effort.iterations += 1
        if state is State.GOING and not task.is_spent and not self._is_over(task):
            return []
        self._refined.popleft()
        at, residual, found = after_newton(task, newton, state)
        if found is Verdict.GOING and not self._is_over(task):
            return self._join(task.key, [task], [at])
        return self._leave(task, found, at._replace(residual=torch.tensor(residual)))


def _last_iterations(task: ConvexMember, at: Point) -> tuple[Verdict, Point]:
    count = task.left
    for _ in range(count):
        at = iterate(task.problem.loss, task.penalty, at)
    task.effort.iterated(task.problem, count)
    return look(task, at)
