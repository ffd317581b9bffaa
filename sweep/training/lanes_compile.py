"""Compiles a program's step while it trains eagerly.

The step is compiled for one number of slots, in a thread, once the training left is worth it:
compiling takes seconds (less where an earlier run left its cache), a compiled step a third of an
eager one or less. Without a C++ compiler, or where compiling fails, training stays eager.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sweep.training.lanes_step import LaneStep, State, StepInputs

WORTH_SECONDS = 15.0
"""Eager training left that makes compiling worth its while."""
WARM_SECONDS = 4.0
"""With a warm cache the compiler is done in this time, if training does not compete with it."""
MOST_PROGRAMS = 64
THREAD_NAME = "sweep-compile"


class BackgroundCompile:
    """A step being compiled: `result` once it is there, `error` if it will never be."""

    def __init__(self, step: LaneStep, state: State, inputs: StepInputs) -> None:
        self.slots = len(inputs.folds)
        self.result: Callable[[State, StepInputs], State] | None = None
        self.error: str | None = None
        example = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, (state, inputs))
        # No daemon: killed inside the compiler's C++ at the interpreter's end, it would abort the
        # process. The command line, which has nothing left to do by then, exits without waiting.
        self._thread = threading.Thread(target=self._compile, args=(step, *example))
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def _compile(self, step: LaneStep, state: State, inputs: StepInputs) -> None:
        try:
            compiled = compile_step(step)
            compiled(state, inputs)
            self.result = compiled
        except Exception as error:
            error = getattr(error, "inner_exception", error)
            lines = str(error).strip().splitlines() or [""]
            self.error = f"{type(error).__name__}: {lines[0][:160]}"


def compile_step(step: LaneStep) -> Callable[[State, StepInputs], State]:
    """The step as one compiled program, for the shapes that it is first called with."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    # Every program compiles the same code for other constants.
    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_PROGRAMS)
    # One kernel file at a time is compiled here; a pool of helper processes would only cost.
    inductor.compile_threads = 1
    compiled: Callable[[State, StepInputs], State] = torch.compile(
        step.__call__, dynamic=False, fullgraph=True
    )
    return compiled
