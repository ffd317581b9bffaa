"""The rules of divergence on plain numbers, one update after the other."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from sweep.spec.study import DivergenceSpec
from sweep.training.divergence import ONSET, RECORD, STRANDED_GROWTH, Watch, new_watch, observe


class Row(NamedTuple):
    """One update: its loss, its gradient's norm, the learning rate of each parameter group."""

    loss: float
    norm: float
    rates: tuple[float, ...]


class Judge:
    """What `observe` finds, at a fraction of its price while training is calm."""

    def __init__(self, n_tensors: int, rules: DivergenceSpec, greatest: float) -> None:
        """`greatest`: the greatest number of the model's format; a norm above it overflows."""
        self.rules, self.greatest = rules, greatest
        # Of sizes that stay 0 nothing is said; a parameter that is not finite shows in the loss.
        self.sizes = torch.zeros(n_tensors, dtype=torch.float64)
        self.watch = new_watch(self.sizes)
        self.rows: deque[Row] = deque(maxlen=RECORD)
        self.step = 0
        self._calm: tuple[float, float] | None = None
        self._peaks: Sequence[float] = [0.0] * n_tensors

    def take(self, loss: float, norms: Sequence[float], rates: tuple[float, ...]) -> bool:
        """Whether this update is the first bad one. `norms`: one a parameter tensor."""
        total = math.hypot(*norms)
        if total > self.greatest:
            total = math.inf
        self.rows.append(Row(loss, total, rates))
        if self._calm is not None and abs(loss) <= self._calm[0] and total <= self._calm[1]:
            # All that `observe` would change.
            self.step, self._peaks = self.step + 1, norms
            return False
        numbers = [torch.tensor(value, dtype=torch.float64) for value in (loss, total)]
        peaks = torch.tensor(list(norms), dtype=torch.float64)
        self.watch = observe(self._current(), numbers[0], numbers[1], peaks, self.sizes, self.rules)
        self.step, self._peaks = int(self.watch.step), self.watch.peaks.tolist()
        self._calm = calm_limits(self.watch, self.rules)
        return bool(self.watch.code)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        watch = self._current()._asdict()
        del watch["record"]
        return {
            "watch": {name: value.tolist() for name, value in watch.items()},
            "rows": [list(row) for row in self.rows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        for name, value in state["watch"].items():
            like = getattr(self.watch, name)
            new = torch.tensor(value, dtype=like.dtype)
            self.watch = self.watch._replace(**{name: new})
        self.rows.clear()
        self.rows.extend(Row(loss, norm, tuple(rates)) for loss, norm, rates in state["rows"])
        self.step, self._peaks = int(self.watch.step), self.watch.peaks.tolist()
        self._calm = calm_limits(self.watch, self.rules) if self.step else None

    def _current(self) -> Watch:
        peaks = torch.tensor(self._peaks, dtype=torch.float64)
        step = torch.tensor(self.step, dtype=torch.int64)
        return self.watch._replace(step=step, peaks=peaks, bad_peaks=peaks)


def calm_limits(watch: Watch, rules: DivergenceSpec) -> tuple[float, float] | None:
    """(loss, norm) up to which an update can neither be bad nor begin a streak; None amid one."""
    away = ONSET * max(1.0, float(watch.first_norm))
    if watch.loss_streak or watch.norm_streak or watch.stranded or watch.peaks.amax() > away:
        return None
    growth = min(STRANDED_GROWTH, rules.loss_growth or math.inf)
    most = min(ONSET, rules.gradient_growth or math.inf)
    return growth * max(1.0, float(watch.first_loss)), most * max(1.0, float(watch.first_norm))
