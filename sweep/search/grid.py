"""A grid: every combination of the listed values, each tried once, in a seeded order."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sweep.errors import RequestError

# What has no effect without a regularizer: one cell stands for all their values.
_OF_A_REGULARIZER = frozenset({"lambda", "l1_ratio"})


def grid_cells(space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Every cell of the grid over `space`, in lexicographic order.

    Cells with regularizer `none` that differ only in lambda and l1_ratio are one cell, written
    with the first of those values. Raises RequestError for a range without a step.
    """
    grid = Grid(space)
    return [grid.cell(index) for index in range(grid.size)]


def grid_size(space: Mapping[str, BaseDistribution]) -> int:
    """How many cells the grid has, without listing them."""
    return Grid(space).size


def is_without_effect(trial: Mapping[str, Any], name: str) -> bool:
    """Whether the trial would be the same whatever its value of this knob."""
    return name in _OF_A_REGULARIZER and trial.get("regularizer") == "none"


class Grid:
    """The trials of a grid search: the enqueued ones, then every cell they left, shuffled.

    Nothing is listed: cells are counted off by mixed radix and shuffled as far as asked
    (Fisher and Yates), so a grid may be far larger than the number of its trials.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        *,
        seed: int = 0,
        enqueue: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        values = {name: _values(name, dist) for name, dist in sorted(space.items())}
        self._blocks = _blocks(values)
        self.size = sum(_n_cells(block) for block in self._blocks)
        self._enqueued = [
            _complete(trial, values, random.Random(f"{seed}/{i}"))
            for i, trial in enumerate(enqueue)
        ]
        self._taken = {self._index(trial) for trial in self._enqueued} - {None}
        self.n_trials = self.size + len(self._enqueued) - len(self._taken)
        self._random = random.Random(seed)
        self._swapped: dict[int, int] = {}
        self._n_drawn = 0
        self._drawn: list[int] = []

    def cell(self, index: int) -> dict[str, Any]:
        """The cell at `index` of the lexicographic order, 0 <= index < size."""
        for block in self._blocks:
            if index < _n_cells(block):
                cell = {}
                for name in reversed(block):
                    index, i = divmod(index, len(block[name]))
                    cell[name] = block[name][i]
                return dict(reversed(cell.items()))
            index -= _n_cells(block)
        raise IndexError(f"the grid has {self.size} cells")

    def trial(self, number: int) -> dict[str, Any]:
        """What trial `number` tries, 0 <= number < n_trials."""
        if number < len(self._enqueued):
            return dict(self._enqueued[number])
        number -= len(self._enqueued)
        while len(self._drawn) <= number:
            index = self._draw()
            if index not in self._taken:
                self._drawn.append(index)
        return self.cell(self._drawn[number])

    def _draw(self) -> int:
        if self._n_drawn == self.size:
            raise IndexError(f"the grid has {self.n_trials} trials")
        place = self._random.randrange(self._n_drawn, self.size)
        index = self._swapped.get(place, place)
        self._swapped[place] = self._swapped.pop(self._n_drawn, self._n_drawn)
        self._n_drawn += 1
        return index

    def _index(self, trial: Mapping[str, Any]) -> int | None:
        offset = 0
        for block in self._blocks:
            index = 0
            for name, values in block.items():
                if trial[name] not in values and not is_without_effect(trial, name):
                    break
                place = 0 if is_without_effect(trial, name) else values.index(trial[name])
                index = index * len(values) + place
            else:
                return offset + index
            offset += _n_cells(block)
        return None


def _values(name: str, dist: BaseDistribution) -> Sequence[Any]:
    if isinstance(dist, CategoricalDistribution):
        return dist.choices
    if isinstance(dist, IntDistribution):
        return range(dist.low, dist.high + 1, dist.step)
    assert isinstance(dist, FloatDistribution)
    if dist.single():
        return [dist.low]
    if dist.step is None:
        raise RequestError(
            f"{name} is a range of real numbers, which sampler grid cannot list: "
            "give it a step or choices, or use sampler tpe or qmc"
        )
    # In decimal, so that 0 + 3 * 0.1 is written 0.3.
    low, high, step = (Decimal(str(x)) for x in (dist.low, dist.high, dist.step))
    return [float(low + i * step) for i in range(int((high - low) / step) + 1)]


def _blocks(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Sequence[Any]]]:
    if "none" not in values.get("regularizer", []):
        return [dict(values)]
    others = [name for name in values["regularizer"] if name != "none"]
    without = {
        name: options[:1] if name in _OF_A_REGULARIZER else options
        for name, options in values.items()
    }
    blocks = [{**without, "regularizer": ["none"]}, {**values, "regularizer": others}]
    return [block for block in blocks if block["regularizer"]]


def _n_cells(block: Mapping[str, Sequence[Any]]) -> int:
    return math.prod(len(values) for values in block.values())


def _complete(
    trial: Mapping[str, Any], values: Mapping[str, Sequence[Any]], rng: random.Random
) -> dict[str, Any]:
    drawn = {name: rng.choice(options) for name, options in values.items()}
    return {**drawn, **trial}
