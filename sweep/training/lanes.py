"""The batched engine: M members stacked and stepped together as one program (torch.func).

Members whose tensors have the same shapes and whose steps are the same code share a program.
Members whose module cannot be batched train on the reference engine, visibly.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sweep.errors import SweepError
from sweep.spec.exact import EXACT
from sweep.training.device import CPU
from sweep.training.experiment import Experiment
from sweep.training.lanes_fista import Solver
from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_program import Program
from sweep.training.lanes_stepper import STEP
from sweep.training.member import Done, Event, Member
from sweep.training.memory import SHARE, free_bytes, is_out_of_memory, keep_freed_memory, slot_bytes
from sweep.training.pool import ReferencePool
from sweep.training.threads import Workers
from sweep.training.unbatchable import explain, in_short


class LanesEngine:
    """Trains members as lanes of as few programs as their shapes allow.

    Members of a program that cannot be batched go to the reference engine, and `notice` says so.
    """

    def __init__(
        self,
        experiment: Experiment,
        slots: int,
        notice: Callable[[str], None] = lambda text: None,
        compile_when: str = "never",
        memory: int | None = None,
    ) -> None:
        self.experiment, self.slots, self.notice = experiment, slots, notice
        self.compile_when = compile_when
        self.memory = int(SHARE * free_bytes(experiment.device)) if memory is None else memory
        self.reference = ReferencePool(experiment, notice, memory=self.memory)
        self.solver = Solver(experiment, slots)
        self.workers = Workers(experiment.device)
        keep_freed_memory()
        # It would tell a user to report to PyTorch what this engine measures and decides itself.
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
        self._programs: dict[Any, Program] = {}
        self._one_by_one: set[Any] = set()
        self.why = ""
        """Why members train one by one, in a few words."""
        self._models: dict[Any, dict[tuple[int, int], LaneModel]] = {}
        self._turn = 0
        self._to_come = 0
        self._n_added = 0
        self._n_of: dict[Any, int] = {}
        self._told_of_compiling: set[str] = set()

    @property
    def pending(self) -> int:
        lanes = sum(p.pending for p in self._programs.values())
        return lanes + self.solver.pending + self.reference.pending

    @property
    def programs(self) -> list[Program]:
        return list(self._programs.values())

    def add(self, member: Member) -> None:
        if member.setting.optimizer == EXACT:
            self.solver.waiting.append(member)
            return
        try:
            model = LaneModel.build(self.experiment, member)
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            # The reference engine meets the same exception and reports it as this member's.
            self.reference.add(member)
            return
        key = model.program_key
        unstackable = model.start.traits.unstackable
        if unstackable is not None and key not in self._one_by_one:
            self._give_up(key, unstackable)
        if key in self._one_by_one:
            self.reference.add(member)
            return
        if key not in self._programs:
            slots = min(self.slots, self.memory // self._bytes(model, model.plan.batch))
            if slots < 2 <= self.slots:
                self.notice("reference engine: no two models of this size fit the memory at once")
                self.why = "no two models fit the memory"
                self._one_by_one.add(key)
                self.reference.add(member)
                return
            self._programs[key] = self._program(model, slots)
        self._programs[key].waiting.append(model)
        self._models.setdefault(key, {})[member.name] = model
        self._n_added += 1
        self._n_of[key] = self._n_of.get(key, 0) + 1

    def _bytes(self, model: LaneModel, batch: int) -> int:
        shape, dtype = self.experiment.problem.input_shape, self.experiment.dtype
        return slot_bytes(model.start.module, shape, dtype, model.member.setting.optimizer, batch)

    def expect(self, members: int) -> None:
        """About so many members more are to come: what compiling may be worth."""
        self._to_come = members
        self.reference.expect(members if self._one_by_one else 0)

    def describe(self) -> str:
        """How members train at present, in words."""
        # What has not trained yet may turn out not to be batched.
        programs = [program for program in self._programs.values() if program.most_used]
        parts = []
        if programs:
            slots = sum(program.most_used for program in programs)
            how = in_what_form([program.stepper.how for program in programs])
            many = f" in {len(programs)} programs" if len(programs) > 1 else ""
            parts.append(f"lanes, {slots} slots{many}, {how}{self.experiment.where}")
        if self.solver.pending:
            parts.append(f"lanes, {self.solver.slots} slots, exact solver")
        if self._one_by_one or self.reference.pending:
            why = f": {self.why}" if self.why else ""
            parts.append(self.reference.describe() + why)
        return " + ".join(parts) or "lanes"

    def limit(self, name: tuple[int, int], steps: int) -> None:
        """The member ends, `stopped`, once it has tried `steps` updates."""
        for program in self._programs.values():
            program.limit(name, steps)
        self.solver.limit(name, steps)
        self.reference.limit(name, steps)

    def remove(self, name: tuple[int, int]) -> None:
        for key, program in self._programs.items():
            program.remove(name)
            self._models[key].pop(name, None)
        self.solver.remove(name)
        self.reference.remove(name)

    def close(self, finish: bool = False) -> None:
        """Nothing more will be trained. With `finish`, what is being compiled for it may come to
        its end, for later runs.
        """
        for program in self._programs.values():
            program.stepper.close(finish)
        self.workers.shutdown()
        self.reference.close()

    def advance(self) -> list[Event]:
        """Trains for a moment; programs take turns."""
        if self.solver.pending:
            return self.solver.advance()
        busy = [key for key, program in self._programs.items() if program.pending]
        if not busy:
            return self.reference.advance()
        self._turn += 1
        key = busy[self._turn % len(busy)]
        program = self._programs[key]
        program.to_come = self._to_come * self._n_of[key] / self._n_added
        try:
            events = program.advance()
        except (Exception, SystemExit) as error:
            # The error's traceback holds on to what the step had allocated.
            why = explain(error)
            was_memory = is_out_of_memory(error)
        else:
            self._tell_if_not_compiled(program)
            for event in events:
                if isinstance(event, Done):
                    del self._models[key][event.member.name]
            return events
        if was_memory:
            self._make_do(key, program)
            return []
        self.hand_over(program, why)
        return []

    def hand_over(self, program: Program, why: str) -> None:
        """The members of a program that proves not to be batched train one by one from now on."""
        key = next(key for key, known in self._programs.items() if known is program)
        self._give_up(key, why)
        self._programs.pop(key).stepper.close()
        for model in self._models.pop(key).values():
            self.reference.add(model.member)

    def _program(self, model: LaneModel, slots: int) -> Program:
        try:
            return Program(self.experiment, model, slots, self.compile_when, self.workers)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise SweepError(self._too_large(model))

    def _make_do(self, key: Any, program: Program) -> None:
        """The memory was too little: half as many slots, and all of their members from the start.

        Raises SweepError, with the batch that would fit, where there was but one.
        """
        slots, limits = program.slots, program.limits
        models = self._models[key]
        first = next(iter(models.values()))
        # What the lanes held is free before others are made.
        program.stepper.close()
        del self._programs[key], program
        gc.collect()
        if self.experiment.device != CPU:
            torch.cuda.empty_cache()
        if slots < 2:
            raise SweepError(self._too_large(first))
        self.notice(f"out of memory with {slots} models at once; going on with {slots // 2}")
        fewer = self._program(first, slots // 2)
        fewer.waiting.extend(models.values())
        fewer.limits.update(limits)
        self._programs[key] = fewer

    def _too_large(self, model: LaneModel) -> str:
        free, batch = free_bytes(self.experiment.device), model.plan.batch
        fixed = self._bytes(model, 0)
        rows = min(batch - 1, (free - fixed) // (self._bytes(model, 1) - fixed))
        text = (
            f"Out of memory: one model in training needs about {_mib(self._bytes(model, batch))} "
            f"with batches of {batch:,} rows, and {_mib(free)} are free."
        )
        if rows < 1:
            return f"{text} Not even a batch of 1 row would fit: give smaller widths."
        return f"{text} Batches of {rows:,} would fit: set train.batch_size."

    def _give_up(self, key: Any, why: str) -> None:
        """Members of this program train one by one from now on."""
        kind = self.experiment.spec.model.kind
        self.notice(f"reference engine for {kind}, which cannot be batched: {why}")
        self.why = in_short(why)
        self._one_by_one.add(key)

    def _tell_if_not_compiled(self, program: Program) -> None:
        for name, error in program.stepper.errors.items():
            if name not in self._told_of_compiling:
                self._told_of_compiling.add(name)
                what = "training" if name == STEP else name
                made = "compiling" if self.experiment.device == CPU else "capturing it"
                self.notice(f"{what} eagerly, since {made} failed: {error}")


def in_what_form(steps: Sequence[str]) -> str:
    """How several programs step, in words: `partly compiled` where some do."""
    return steps[0] if len(set(steps)) == 1 else f"partly {max(set(steps) - {'eager'})}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
