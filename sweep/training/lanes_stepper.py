"""Steps all lanes of a program: eagerly, and compiled as soon as that is there and pays; on a GPU
as a captured graph.

Eager steps go through torch.func until the step has been traced, and then operation by operation
of what was traced, with the same results.

A compiled step takes the lanes in blocks. A thread takes a block through several steps by itself:
no step waits for another block's, which would stall all when one core is busy elsewhere, and a
block's weights stay in that core's cache. How many lanes a block has is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sweep.training import lanes_graph
from sweep.training.batches import FoldTable
from sweep.training.device import CPU
from sweep.training.lanes_blocks import Blocks
from sweep.training.lanes_compile import TRACE_WORTH_SECONDS, Compilation, in_a_line
from sweep.training.lanes_graph import CapturedStep, NotCapturedError
from sweep.training.lanes_library import CompiledProgram, Turns
from sweep.training.lanes_step import LaneStep, State, StepInputs
from sweep.training.lanes_trace import Traced, step_function, tensors, trace
from sweep.training.threads import Workers, on_threads

CHUNK_SECONDS, MOST_STEPS, FIRST_STEPS = 0.1, 64, 4
"""A chunk of steps, between two looks at the divergence flags, takes about so long, and has at
most so many steps; until the time of a step is known it has the third number."""
LEAST_SECONDS = 5e-5
"""No eager step of a lane takes a core less."""
WARM_UP_CHUNKS = 2
"""The first chunks import and allocate; they are not timed."""
STEP = "step"
TURNS = 16
"""So many turns a thread takes in a chunk: few enough for a block's weights to be of use to it for
some steps, enough for no thread to wait long for the others' last one."""


class Chunk(NamedTuple):
    """What the next S steps of M lanes are given."""

    folds: Int[Tensor, " M"]
    rows: Int[Tensor, "S M B"]
    n_rows: Int[Tensor, "S M"]
    step: Int[Tensor, "S M"]
    learning_rate: Float[Tensor, "S M"]

    def stacked(self, begin: int = 0, end: int | None = None) -> StepInputs:
        """The inputs of all steps, along a first axis, of the lanes from begin to end."""
        whole = (self.folds.expand(len(self.rows), -1), *self[1:])
        return StepInputs(*(t[:, begin:end] for t in whole))

    def inputs(self) -> Iterator[StepInputs]:
        """The inputs of each step."""
        return (StepInputs(*step) for step in zip(*self.stacked(), strict=True))


class _Times(NamedTuple):
    """Of a thread's share of a chunk, in seconds: by the clock, and by what its core did."""

    began: float
    ended: float
    core: float


def contiguous(state: State) -> tuple[State, list[Tensor]]:
    """A state that may be changed in place, and its tensors: torch.func may leave some transposed
    or expanded.
    """
    whole = tensors(state)
    if all(t.is_contiguous() for t in whole):
        return state, whole
    made: State = tree_map_only(Tensor, Tensor.contiguous, state)
    return made, tensors(made)


class Stepper:
    """The step of one program, in whatever form is best at present.

    `compile_when`: never, always, auto (where it pays), or kept (never, but a step that was
    compiled before is taken where it pays). `brief`: what the compiled code depends on, in short;
    `more`: what else is worth compiling where the step is, by name. Where nothing is to be
    compiled neither is called.

    On a GPU nothing is compiled. Unless it is `never`, the step is captured, once for each number
    of lanes.
    """

    def __init__(
        self,
        step: LaneStep,
        table: FoldTable,
        compile_when: str,
        brief: Callable[[], str | None],
        more: Callable[[State], Mapping[str, Callable[[], Traced]]],
        workers: Workers,
    ) -> None:
        self.step, self.table, self.compile_when = step, table, compile_when
        self.brief, self._more = brief, more
        self.compilation: Compilation | None = None
        self.step_seconds: float | None = None
        self._shared = tensors(table)
        self.device = table.y.device
        self.captures = compile_when != "never" and lanes_graph.can_capture(self.device)
        self._captured: CapturedStep | None = None
        self._not_captured: dict[str, str] = {}
        self.workers, self.threads = workers, workers.count
        self._chunks = 0
        self._stepping: list[Future[_Times]] = []
        self._blocks = Blocks(self.threads)

    def compiled(self, name: str = STEP) -> CompiledProgram | None:
        """The compiled program of this name, once it is there."""
        return None if self.compilation is None else self.compilation.ready.get(name)

    def traced(self, name: str = STEP) -> Traced | None:
        """What was traced under this name, if that was worth it."""
        return None if self.compilation is None else (self.compilation.traced or {}).get(name)

    @property
    def is_compiled(self) -> bool:
        return self.compiled() is not None

    @property
    def how(self) -> str:
        """In what form the step is, in a word."""
        if self._captured is not None:
            return "captured"
        return "compiled" if self.is_compiled else "eager"

    @property
    def errors(self) -> Mapping[str, str]:
        """Of each program that could not be compiled or captured, why."""
        return self._not_captured if self.compilation is None else self.compilation.errors

    @property
    def steps_at_once(self) -> int:
        """Steps that a chunk should have."""
        if self.step_seconds is None:
            return FIRST_STEPS
        return max(1, min(MOST_STEPS, round(CHUNK_SECONDS / self.step_seconds)))

    def begin(self, state: State, chunk: Chunk, steps_left: float) -> Callable[[], State]:
        """Begins the chunk's steps; `steps_left` are to come, these included.

        Whoever calls what is returned gets the state after them. Until then, where they are
        compiled, other threads change the one before.
        """
        self._consider_compiling(state, chunk, steps_left)
        if self.is_compiled:
            return self._begin_compiled(state, chunk)
        return lambda: self._run(state, chunk)

    def _run(self, state: State, chunk: Chunk) -> State:
        began = time.perf_counter()
        state = (self._run_captured if self.captures else self._run_eagerly)(state, chunk)
        if self.device.type == "cuda":
            # Else the time taken would be that of asking for it.
            torch.cuda.synchronize(self.device)
        self._chunks += 1
        if self._chunks > WARM_UP_CHUNKS:
            self._took(chunk, time.perf_counter() - began)
        return state

    def _took(self, chunk: Chunk, seconds: float) -> None:
        a_step = seconds / len(chunk.rows)
        self.step_seconds = min(a_step, self.step_seconds or a_step)

    def _run_eagerly(self, state: State, chunk: Chunk) -> State:
        """Operation by operation of the traced step, once there is one.

        Else by torch.func, which takes as long again to find out what to do as to do it.
        """
        # Threads that share an operation wait for the last of them: were one's core taken by the
        # compiler, all would go at a quarter of their speed.
        is_one_taken = self.compilation is not None and self.compilation.is_at_work
        traced = self.traced()
        with on_threads(max(1, self.threads - 1) if is_one_taken else None):
            if traced is None:
                for inputs in chunk.inputs():
                    state = self.step(state, inputs, self.table)
                return state
            state, whole = contiguous(state)
            for inputs in chunk.inputs():
                traced.graph([*whole, *inputs], self._shared)
        return state

    def _run_captured(self, state: State, chunk: Chunk) -> State:
        if self._captured is None or self._captured.state is not state:
            # The memory of the one before is free first.
            self._captured = None
            try:
                first = next(chunk.inputs())
                self._captured = CapturedStep(self.step, state, first, self.table)
            except NotCapturedError as error:
                self.captures = False
                self._not_captured = {STEP: in_a_line(error)}
                return self._run_eagerly(state, chunk)
        for inputs in chunk.inputs():
            self._captured(inputs)
        return state

    def _begin_compiled(self, state: State, chunk: Chunk) -> Callable[[], State]:
        compiled = self.compiled()
        assert compiled is not None
        state, whole = contiguous(state)
        lanes = len(chunk.folds)
        size = self._blocks.size(lanes)
        # The compiled step takes two lanes or more.
        n_blocks = max(1, min(-(-lanes // size), lanes // 2))
        parts = max(1, round(TURNS * self.threads / n_blocks)) if n_blocks > self.threads else 1
        turns = Turns(n_blocks, parts)
        inputs = chunk.stacked()

        def train() -> _Times:
            began, core_began = time.perf_counter(), time.thread_time()
            compiled.steps(whole, inputs, self._shared, turns)
            return _Times(began, time.perf_counter(), time.thread_time() - core_began)

        stepping = [self.workers.submit(train) for _ in range(self.threads)]
        self._stepping = [*(future for future in self._stepping if not future.done()), *stepping]

        def finish() -> State:
            began, ended, core = zip(*(future.result() for future in stepping), strict=True)
            self._took(chunk, max(ended) - min(began))
            self._blocks.took(size, sum(core) / (lanes * len(chunk.rows)))
            return state

        return finish

    def _consider_compiling(self, state: State, chunk: Chunk, steps_left: float) -> None:
        """Looks for what was compiled, or starts compiling, where that pays."""
        if self.compile_when == "never" or self.device != CPU or len(chunk.folds) < 2:
            return
        if self.compilation is None:
            sources = {STEP: self._source(state, chunk), **self._more(state)}
            self.compilation = Compilation(sources, self.brief())
        had = self.is_compiled
        if not self.compilation.is_complete:
            if self.compile_when == "always":
                self.compilation.start()
                self.compilation.wait(STEP)
            else:
                # Before it is known what a step takes: as much at least.
                least = len(chunk.folds) * LEAST_SECONDS / self.threads
                left = steps_left * (self.step_seconds or least)
                if left >= TRACE_WORTH_SECONDS and not had:
                    self.compilation.trace()
                if self.compile_when != "kept" and left >= self.compilation.worth():
                    self.compilation.start()
            self.compilation.poll()
        if self.is_compiled and not had:
            self.step_seconds = None

    def _source(self, state: State, chunk: Chunk) -> Callable[[], Traced]:
        """Traces the step. Keeps one lane of each tensor, for its form."""
        given = (state, next(chunk.inputs()))
        state, inputs = tree_map_only(Tensor, lambda t: t[:1].clone(), given)
        function = step_function(self.step, state, inputs, self.table)
        return lambda: trace(function, tensors((state, inputs)), self._shared)

    def wait(self) -> None:
        """Until no other thread steps."""
        wait(self._stepping)

    def close(self, finish: bool = False) -> None:
        """Nothing more will be stepped; what is being compiled may `finish`."""
        self.wait()
        if self.compilation is not None:
            self.compilation.close(finish)
