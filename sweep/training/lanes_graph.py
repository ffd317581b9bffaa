"""A step of lanes as a CUDA graph: captured once, then run without Python between its kernels.

All that needs a GPU to be tried out is `capture`. A graph reads and writes the memory that it was
captured with: the lanes' state is changed in place, a step's inputs are copied to where the
captured ones lay, and another number of lanes needs another graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch.utils._pytree import tree_map

from sweep.training.batches import FoldTable
from sweep.training.lanes_step import LaneStep, State, StepInputs
from sweep.training.lanes_trace import step_function, tensors
from sweep.training.memory import is_out_of_memory

WARM_UPS = 3
"""Runs before a capture, as torch's own `make_graphed_callables` has it: libraries set up what
they need, and choose their kernels."""


class NotCapturedError(Exception):
    """The work does what no graph can hold, such as looking at a number on the CPU."""


class CapturedStep:
    """The step of the lanes in `state`, which it changes in place; `inputs` are like any step's.

    Raises what the step raises, NotCapturedError where it cannot be captured.
    """

    def __init__(self, step: LaneStep, state: State, inputs: StepInputs, table: FoldTable) -> None:
        self.state = state
        self._inputs = tree_map(torch.clone, inputs)
        function, shared = step_function(step, state, self._inputs, table), tensors(table)
        lanes = tensors((state, self._inputs))

        def rehearse() -> None:
            function([t.clone() for t in lanes], shared)

        self._run = capture(lambda: function(lanes, shared), rehearse, table.y.device)

    def __call__(self, inputs: StepInputs) -> None:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._run()


def can_capture(device: torch.device) -> bool:
    """Whether a device has such graphs."""
    return device.type == "cuda"


def capture(
    work: Callable[[], object], rehearse: Callable[[], object], device: torch.device
) -> Callable[[], None]:
    """Runs `work` on the GPU whenever it is called; `rehearse` does the same to other memory.

    As torch's notes on CUDA graphs ask for: warm-up and capture go on beside the current stream,
    which waits for them.
    """
    beside = _beside(device)
    current = torch.cuda.current_stream(device)
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        for _ in range(WARM_UPS):
            rehearse()
    current.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    try:
        # The outer one returns to the current stream also where a broken capture does not.
        with torch.cuda.stream(beside), torch.cuda.graph(graph, stream=beside):
            work()
    except RuntimeError as error:
        # What ends a broken capture raises as well, and hides what broke it.
        broke = error.__context__ if isinstance(error.__context__, RuntimeError) else error
        if is_out_of_memory(broke):
            raise broke from None
        raise NotCapturedError(str(broke)) from broke
    replay: Callable[[], None] = graph.replay
    return replay


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """One for all captures, since the libraries keep some memory for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
