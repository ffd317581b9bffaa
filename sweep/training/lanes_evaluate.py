"""Scores of lanes on their folds' rows: the lanes of a fold share its rows, and go together."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sweep.problem.scores import Score
from sweep.training.batches import FoldTable
from sweep.training.device import CPU
from sweep.training.experiment import Experiment
from sweep.training.lanes_convolution import WrittenOut
from sweep.training.lanes_library import CompiledProgram
from sweep.training.lanes_member import Lane
from sweep.training.lanes_scoring import (
    Measured,
    judge_lanes,
    measure,
    stopping_losses,
    with_formula,
)
from sweep.training.lanes_step import State, Tensors
from sweep.training.lanes_trace import Traced, trace
from sweep.training.memory import put_out
from sweep.training.reference import as_matrix
from sweep.training.scoring import ScoreUndefined
from sweep.training.threads import Workers

NUMBERS_AT_ONCE, COMPILED_NUMBERS_AT_ONCE, NUMBERS_ON_DEVICE = 2**22, 2**21, 2**26
"""Numbers put out, over all lanes, of one evaluation call: an eager one is slow to begin, a
compiled one makes the best of a core's own cache, one on a GPU should keep all of it at work."""
NUMBERS_WORTH_THREADS = 2**20
"""Numbers put out of an eager look at all lanes that more threads than one are worth while for:
with fewer they would mostly wait for Python's lock."""
PARTS_A_THREAD = 2
"""Parts of a compiled evaluation, at least, where there are lanes enough."""
KEPT_ROWS = 2**24
"""Numbers of a fold's rows that are kept gathered between evaluations."""

Scores = dict[int, list[float | ScoreUndefined]]
"""For each slot its scores."""
_T = TypeVar("_T")


class _Part(NamedTuple):
    """Some lanes of one fold, and the R rows they are scored on."""

    slots: list[int]
    fold: int
    rows: NDArray[np.int64]
    x: Tensor | None
    """None where it is too large to be gathered at once."""
    y: Tensor
    weights: Tensor | None


class Evaluation:
    """Evaluates lanes of one program, in evaluation mode.

    The study's scores are found by `measure`: by the compiled program once that is there, else
    operation by operation of what was `traced`, once that is.
    """

    def __init__(
        self,
        experiment: Experiment,
        module: nn.Module,
        table: FoldTable,
        workers: Workers,
    ) -> None:
        self.experiment, self.module, self.table = experiment, module, table
        self.workers = workers
        self.compiled: CompiledProgram | None = None
        self.traced: Traced | None = None
        self.formulas = with_formula(experiment)
        self._each = put_out(module, experiment.problem.input_shape, experiment.dtype)
        at_once = NUMBERS_AT_ONCE if experiment.device == CPU else NUMBERS_ON_DEVICE
        self.rows_at_once = max(1, at_once // self._each)
        self._own = threading.local()
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor, Tensor | None]] = {}

    def scores(
        self, lanes: Mapping[int, Lane], state: State, which: str, scores: Sequence[Score]
    ) -> Scores:
        """For each slot the scores on its fold's `test` or `train` rows."""
        return self.begin(lanes, state, which, scores)()

    def begin(
        self, lanes: Mapping[int, Lane], state: State, which: str, scores: Sequence[Score]
    ) -> Callable[[], Scores]:
        """Begins to compute `scores`, on other threads where they are worth it. Whoever calls what
        is returned waits for them; until then the state must stay what it is.
        """
        parts = self._parts(lanes, which)
        slots = [slot for part in parts for slot in part.slots]
        known = [score.name for score in self.formulas]
        places = [known.index(score.name) for score in scores if score.name in known]
        running = self._measuring(state, parts) if len(places) == len(scores) else None

        def judged(part: _Part) -> list[list[float | ScoreUndefined]]:
            outputs = self._outputs(state, part)
            return [
                judge_lanes(
                    self.experiment, score, outputs, part.fold, part.rows, part.y, part.weights
                )
                for score in scores
            ]

        def found() -> Scores:
            measured = Measured.of(running)
            if measured is not None and not any(measured.undefined[i] for i in places):
                by_score = [measured.scores[i] for i in places]
                return {slot: [*of_slot] for slot, *of_slot in zip(slots, *by_score, strict=True)}
            result: Scores = {}
            for part, by_part in zip(parts, self._each_of(judged, parts), strict=True):
                for slot, *of_slot in zip(part.slots, *by_part, strict=True):
                    result[slot] = of_slot
            return result

        return found

    def held_out_losses(self, lanes: Mapping[int, Lane], state: State) -> dict[int, float]:
        """For each slot that stops early the loss it looks at."""

        def looked_at(part: _Part) -> list[float]:
            outputs = self._outputs(state, part)
            return stopping_losses(self.experiment, outputs, part.y, part.weights)

        lanes = {s: lane for s, lane in lanes.items() if lane.model.plan.held_out is not None}
        parts = self._parts(lanes, "held_out")
        slots = [slot for part in parts for slot in part.slots]
        measured = Measured.of(self._measuring(state, parts))
        if measured is not None:
            return dict(zip(slots, measured.losses, strict=True))
        losses = [loss for part in self._each_of(looked_at, parts) for loss in part]
        return dict(zip(slots, losses, strict=True))

    def _each_of(self, function: Callable[[_Part], _T], parts: Sequence[_Part]) -> Iterable[_T]:
        """The function of each part, on a thread a core where that is worth it."""
        numbers = sum(self._each * len(part.rows) * len(part.slots) for part in parts)
        if self.compiled is None and numbers < NUMBERS_WORTH_THREADS:
            return map(function, parts)
        return self.workers.map(function, parts)

    def source(self, state: State) -> Callable[[], Traced] | None:
        """Traces `measure` for any number of lanes and rows; None where the score has no formula.

        Its lanes are parameters, buffers, and what is measured; its shared tensors x, y, weights.
        """
        if not self.formulas:
            return None
        one_lane = [t[:1].clone() for t in _tensors(state)]
        names = [*state.parameters, *state.buffers]
        module, n_outputs = copy.deepcopy(self.module).eval(), self.experiment.problem.n_outputs

        def function(lanes: list[Tensor], shared: list[Tensor]) -> Tensor:
            *given, measured = lanes
            x, y, *weights = shared

            def one(tensors: Tensors) -> Tensor:
                outputs = as_matrix(functional_call(module, tensors, (x,)), n_outputs)
                return measure(self.experiment, outputs, y, weights[0] if weights else None)

            with WrittenOut():
                measured.copy_(vmap(one)(dict(zip(names, given, strict=True))))
            return measured

        of_fold = self._take(0, np.arange(2))
        shared = [t for t in of_fold if t is not None]
        lanes = [*one_lane, self._room(1)]
        return lambda: trace(function, lanes, shared, open_rows=True)

    def _parts(self, lanes: Mapping[int, Lane], which: str) -> list[_Part]:
        by_fold: dict[int, list[int]] = {}
        for slot, lane in lanes.items():
            by_fold.setdefault(lane.model.member.fold, []).append(slot)
        parts = []
        for fold, slots in by_fold.items():
            # Which rows a fold holds out is the study's affair: the same for all of its lanes.
            rows = np.asarray(getattr(lanes[slots[0]].model.plan, which))
            x, y, weights = self._gathered(fold, which, rows)
            at_once = max(1, self.rows_at_once // len(rows))
            if self.compiled is not None:
                # So many parts that no thread waits long for the last of them.
                fit = COMPILED_NUMBERS_AT_ONCE // (self._each * len(rows))
                at_once = max(2, min(fit, len(lanes) // (PARTS_A_THREAD * self.workers.count)))
            for part in np.array_split(slots, -(-len(slots) // at_once)):
                parts.append(_Part(part.tolist(), fold, rows, x, y, weights))
        return parts

    def _room(self, lanes: int) -> Float[Tensor, "{lanes} n"]:
        """For what `measure` finds."""
        return torch.zeros(lanes, len(self.formulas) + 2, dtype=self.experiment.dtype)

    def _measuring(self, state: State, parts: Sequence[_Part]) -> Iterable[Tensor] | None:
        """Begins to `measure` the lanes of each part; None where that was neither compiled nor
        traced for all of them.
        """
        program: Callable[..., object] | None = self.compiled
        if program is None and self.traced is not None:
            program = self.traced.graph
        if program is None or any(part.x is None or len(part.rows) < 2 for part in parts):
            return None
        of_lanes = _tensors(state)

        def measured(part: _Part) -> Tensor:
            # The compiled program takes two lanes or more.
            slots = part.slots if len(part.slots) > 1 else part.slots * 2
            if slots == list(range(slots[0], slots[0] + len(slots))):
                taken = [t[slots[0] : slots[0] + len(slots)] for t in of_lanes]
            else:
                index = torch.tensor(slots)
                taken = [t.index_select(0, index) for t in of_lanes]
            room = self._room(len(slots))
            shared = [t for t in (part.x, part.y, part.weights) if t is not None]
            program([*taken, room], shared)
            return room[: len(part.slots)]

        return self._each_of(measured, parts)

    @torch.no_grad()
    def _outputs(self, state: State, part: _Part) -> Tensor:
        """(k, R, K) of a part's k lanes."""
        index = torch.tensor(part.slots, device=self.experiment.device)
        parameters, buffers = (
            {n: t[index] for n, t in tensors.items()}
            for tensors in (state.parameters, state.buffers)
        )
        # A functional call lends the module its parameters: a module serves one thread.
        if not hasattr(self._own, "module"):
            self._own.module = copy.deepcopy(self.module).eval()
        apply = vmap(self._one, in_dims=(0, 0, None))
        if part.x is not None:
            return apply(parameters, buffers, part.x)
        pieces = np.array_split(part.rows, -(-len(part.rows) // self.rows_at_once))
        outputs = [apply(parameters, buffers, self._take(part.fold, piece)[0]) for piece in pieces]
        return torch.cat(outputs, dim=1)

    def _gathered(
        self, fold: int, which: str, rows: NDArray[np.int64]
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(x, y, weights) of the rows; x is None where it is too large to be kept."""
        key = (fold, which)
        if key in self._kept:
            return self._kept[key]
        width = int(np.prod(self.experiment.problem.input_shape))
        if len(rows) <= self.rows_at_once and len(rows) * width <= KEPT_ROWS:
            self._kept[key] = self._take(fold, rows)
            return self._kept[key]
        index = torch.from_numpy(rows).to(self.experiment.device)
        weights = self.table.weights
        y = self.experiment.placed.y_of(fold)[index]
        return None, y, None if weights is None else weights[fold, index]

    def _take(self, fold: int, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
        device = self.experiment.device
        x, y, weights = self.table.take(
            torch.tensor([fold], device=device), torch.from_numpy(rows).to(device).unsqueeze(0)
        )
        return x[0], y[0], None if weights is None else weights[0]

    def _one(self, parameters: Tensors, buffers: Tensors, x: Tensor) -> Tensor:
        with WrittenOut():
            outputs = functional_call(self._own.module, {**parameters, **buffers}, (x,))
        return as_matrix(outputs, self.experiment.problem.n_outputs)


def _tensors(state: State) -> list[Tensor]:
    return [*state.parameters.values(), *state.buffers.values()]
