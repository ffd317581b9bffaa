"""The batched engine: M members stacked and stepped together as one program (torch.func).

Members whose tensors have the same shapes and whose steps are the same code share a program.
Members whose module cannot be batched train on the reference engine, visibly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sweep.spec.exact import EXACT
from sweep.training.experiment import Experiment
from sweep.training.lanes_fista import Solver
from sweep.training.lanes_member import LaneModel
from sweep.training.lanes_program import Program
from sweep.training.member import Event, Member
from sweep.training.memory import SHARE, free_bytes, slot_bytes
from sweep.training.reference import ReferenceEngine


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
        self.memory = int(SHARE * free_bytes()) if memory is None else memory
        self.reference = ReferenceEngine(experiment)
        self.solver = Solver(experiment, slots)
        # It would tell a user to report to PyTorch what this engine measures and decides itself.
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
        self._programs: dict[Any, Program] = {}
        self._one_by_one: set[Any] = set()
        self._turn = 0
        self._to_come = 0
        self._n_added = 0
        self._n_of: dict[Any, int] = {}
        self._told_of_compiling = False

    @property
    def pending(self) -> int:
        lanes = sum(p.pending for p in self._programs.values())
        return lanes + self.solver.pending + self.reference.pending

    def add(self, member: Member) -> None:
        if member.setting.optimizer == EXACT:
            self.solver.waiting.append(member)
            return
        try:
            model = LaneModel.build(self.experiment, member)
        except (Exception, SystemExit):
            # The reference engine meets the same exception and reports it as this member's.
            self.reference.add(member)
            return
        key = model.program_key
        if model.unstackable is not None and key not in self._one_by_one:
            self._give_up(key, model.unstackable)
        if key in self._one_by_one:
            self.reference.add(member)
            return
        if key not in self._programs:
            slots = min(self.slots, self._slots_that_fit(model))
            if slots < 2 <= self.slots:
                self.notice("reference engine: no two models of this size fit the memory at once")
                self._one_by_one.add(key)
                self.reference.add(member)
                return
            self._programs[key] = Program(self.experiment, model, slots, self.compile_when)
        self._programs[key].waiting.append(model)
        self._n_added += 1
        self._n_of[key] = self._n_of.get(key, 0) + 1

    def _slots_that_fit(self, model: LaneModel) -> int:
        setting, experiment = model.member.setting, self.experiment
        each = slot_bytes(
            model.module,
            experiment.problem.input_shape,
            experiment.dtype,
            setting.optimizer,
            model.plan.batch,
        )
        return self.memory // each

    def expect(self, members: int) -> None:
        """About so many members more are to come: what compiling may be worth."""
        self._to_come = members

    def describe(self) -> str:
        """How members train at present, in words."""
        programs = list(self._programs.values())
        parts = []
        if programs:
            slots = sum(len(program.lanes) for program in programs)
            compiled = [program.is_compiled for program in programs]
            how = "compiled" if all(compiled) else "partly compiled" if any(compiled) else "eager"
            many = f" in {len(programs)} programs" if len(programs) > 1 else ""
            parts.append(f"lanes, {slots} slots{many}, {how}")
        if self.solver.pending:
            parts.append(f"lanes, {self.solver.slots} slots, exact solver")
        if self._one_by_one or self.reference.pending:
            parts.append("reference")
        return " + ".join(parts) or "lanes"

    def limit(self, name: tuple[int, int], steps: int) -> None:
        """The member ends, `stopped`, once it has tried `steps` updates."""
        for program in self._programs.values():
            if any(model.member.name == name for model in program.models()):
                program.limits[name] = steps
        self.solver.limit(name, steps)
        self.reference.limit(name, steps)

    def remove(self, name: tuple[int, int]) -> None:
        for program in self._programs.values():
            program.remove(name)
        self.solver.remove(name)
        self.reference.remove(name)

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
            self._tell_if_not_compiled(program)
            return events
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            self._give_up(key, " ".join(str(error).split())[:200] or type(error).__name__)
            for model in self._programs.pop(key).models():
                self.reference.add(model.member)
            return []

    def _give_up(self, key: Any, why: str) -> None:
        """Members of this program train one by one from now on."""
        kind = self.experiment.spec.model.kind
        self.notice(f"reference engine for {kind}, which cannot be batched: {why}")
        self._one_by_one.add(key)

    def _tell_if_not_compiled(self, program: Program) -> None:
        compiling = program.compiling
        if compiling is None or compiling.error is None or self._told_of_compiling:
            return
        self._told_of_compiling = True
        self.notice(f"training eagerly, since compiling failed: {compiling.error}")
