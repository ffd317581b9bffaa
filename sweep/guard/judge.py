"""The rules of divergence on plain numbers, one update after the other."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from sweep.guard.gradients import UNKNOWN
from sweep.spec.study import DivergenceSpec
from sweep.training.divergence import (
    ONSET,
    RECORD,
    STRANDED_GROWTH,
    Watch,
    growth_of,
    new_watch,
    observe,
)


class Row(NamedTuple):
    """One update: its loss, its gradient's norm, the learning rate of each parameter group."""

    loss: float
    norm: float
    rates: tuple[float, ...]


class Weights(NamedTuple):
    """max |entry| of each parameter tensor: its usual one, the one that was usual before the last
    update, and the one after it. All UNKNOWN until the tensor is first measured."""

    usual: Sequence[float]
    before: Sequence[float]
    now: Sequence[float]

    def known(self, sizes: Sequence[float]) -> Sequence[float]:
        """`sizes`, but UNKNOWN of what was not finite from the start, as a mask of -inf."""
        pairs = zip(self.usual, sizes, strict=True)
        return [UNKNOWN if u == UNKNOWN and not math.isfinite(s) else s for u, s in pairs]

    def after(self, sizes: Sequence[float]) -> Weights:
        """After an update; what has no gradient was not changed by it."""
        now = [n if s == UNKNOWN else s for n, s in zip(self.now, sizes, strict=True)]
        before = [n if u == UNKNOWN else u for n, u in zip(now, self.usual, strict=True)]
        usual = [u + (n - u) / RECORD for n, u in zip(now, before, strict=True)]
        return Weights(usual, before, now)


class Judge:
    """What `observe` finds, at a fraction of its price while training is calm."""

    def __init__(self, n_tensors: int, rules: DivergenceSpec, greatest: float) -> None:
        """`greatest`: the greatest number of the model's format; a norm above it overflows."""
        self.rules, self.greatest = rules, greatest
        self.watch = new_watch(torch.zeros(n_tensors, dtype=torch.float64))
        self.rows: deque[Row] = deque(maxlen=RECORD)
        self.step = 0
        self._calm: tuple[float, float] | None = None
        self._peaks: Sequence[float] = [0.0] * n_tensors
        self._weights = Weights(*([UNKNOWN] * n_tensors for _ in Weights._fields))

    def take(
        self,
        loss: float,
        norms: Sequence[float],
        weights: Sequence[float],
        rates: tuple[float, ...],
    ) -> bool:
        """Whether this update is the first bad one.

        One a parameter tensor: `norms`, of the gradients; `weights`, max |entry| before this
        update and so after the last one, UNKNOWN where not measured.
        """
        total = math.hypot(*norms)
        if total > self.greatest:
            total = math.inf
        weights = self._weights.known(weights)
        # The rule of `observe`: once the norm has run away, what grows says nothing any more.
        if not self.rows or self.rows[-1].norm <= ONSET * max(1.0, float(self.watch.first_norm)):
            self._weights = self._weights.after(weights)
        self.rows.append(Row(loss, total, rates))
        # Limits of what is huge already may be infinite, and what is infinite is bad.
        calm = self._calm is not None and abs(loss) <= self._calm[0] and total <= self._calm[1]
        calm = calm and math.isfinite(loss) and math.isfinite(total)
        if calm and all(map(math.isfinite, weights)):
            # All that `observe` would change.
            self.step, self._peaks = self.step + 1, norms
            return False
        numbers = [torch.tensor(value, dtype=torch.float64) for value in (loss, total)]
        peaks, sizes = (torch.tensor(list(v), dtype=torch.float64) for v in (norms, weights))
        before = self._current()
        watch = observe(before, numbers[0], numbers[1], peaks, sizes, self.rules)
        # These sizes are of the update before, whose growth `before` has already.
        self.watch = watch._replace(sizes=before.sizes, growth=before.growth)
        self.step, self._peaks = int(self.watch.step), self.watch.peaks.tolist()
        self._calm = calm_limits(self.watch, self.rules)
        return bool(self.watch.code)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        watch = self._current()._asdict()
        del watch["record"]
        return {
            "weights": [list(values) for values in self._weights],
            "watch": {name: value.tolist() for name, value in watch.items()},
            "rows": [list(row) for row in self.rows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        for name, value in state["watch"].items():
            like = getattr(self.watch, name)
            new = torch.tensor(value, dtype=like.dtype)
            self.watch = self.watch._replace(**{name: new})
        self._weights = Weights(*state["weights"])
        self.rows.clear()
        self.rows.extend(Row(loss, norm, tuple(rates)) for loss, norm, rates in state["rows"])
        self.step, self._peaks = int(self.watch.step), self.watch.peaks.tolist()
        self._calm = calm_limits(self.watch, self.rules) if self.step else None

    def _current(self) -> Watch:
        peaks = torch.tensor(self._peaks, dtype=torch.float64)
        step = torch.tensor(self.step, dtype=torch.int64)
        usual, before, now = (torch.tensor(list(v), dtype=torch.float64) for v in self._weights)
        growth = growth_of(now, before)
        return self.watch._replace(
            step=step, peaks=peaks, bad_peaks=peaks, sizes=usual, growth=growth
        )


def calm_limits(watch: Watch, rules: DivergenceSpec) -> tuple[float, float] | None:
    """(loss, norm) up to which an update can neither be bad nor begin a streak; None amid one."""
    away = ONSET * max(1.0, float(watch.first_norm))
    if watch.loss_streak or watch.norm_streak or watch.stranded or watch.peaks.amax() > away:
        return None
    growth = min(STRANDED_GROWTH, rules.loss_growth or math.inf)
    most = min(ONSET, rules.gradient_growth or math.inf)
    return growth * max(1.0, float(watch.first_loss)), most * max(1.0, float(watch.first_norm))
