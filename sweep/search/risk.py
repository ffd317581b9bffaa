"""How likely a choice is to diverge: a small classifier, learned from the trials so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

LEAST = 4
"""Trials before the first fit, of which at least one diverged and one did not."""
GROWTH = 1.15
"""The classifier is fitted anew when there are so many times the trials of the last fit."""
MOST = 128
"""Trials that it is fitted to."""


def has_diverged(trial: FrozenTrial) -> bool:
    """Whether its parameters are to blame: other failures are no evidence about them."""
    if trial.state is not TrialState.FAIL:
        return False
    failure = trial.user_attrs.get("failure")
    # Asking for Mapping is slow, and this is asked of thousands.
    return isinstance(failure, (dict, Mapping)) and failure.get("kind") == "divergence"


def _never(params: Mapping[str, Any], name: str) -> bool:
    return False


class Risk:
    r"""P(diverged | x) by a Gaussian process classifier with a fixed kernel,

        k(x, z) = 30 (1 + x'z + exp(-||x - z||^2 / 8)),

    a linear boundary in the knobs' own scales that may bend. Each number is scaled to [-1, 1], by
    its logarithm where the knob is logarithmic; a category is one column a choice, 0 or 1/2, so
    that beforehand another choice moves the boundary a third as far as a number's whole range
    does; a knob without effect is 0. Knobs that not every one of the trials has are left out.

    `params` are N trials' parameters, `diverged` says which of them exploded: some, not all.

    Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, algorithms 3.1 and 3.2.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        params: Sequence[Mapping[str, Any]],
        diverged: Bool[np.ndarray, " N"],
        without_effect: Callable[[Mapping[str, Any], str], bool] = _never,
    ) -> None:
        # A second to import, for a study in which something diverges.
        from sklearn.gaussian_process import GaussianProcessClassifier
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct

        self.space = dict(sorted(space.items()))
        self._without_effect = without_effect
        kernel = ConstantKernel(30.0) * (DotProduct(1.0) + RBF(2.0))
        self._classifier = GaussianProcessClassifier(kernel, optimizer=None)
        self._classifier.fit(np.array([self._columns(p) for p in params]), diverged)

    def __call__(self, params: Mapping[str, Any]) -> float:
        """The probability that a trial with these parameters diverges."""
        return float(self._classifier.predict_proba(self._columns(params)[None])[0, 1])

    def _columns(self, params: Mapping[str, Any]) -> Float[np.ndarray, " D"]:
        columns: list[float] = []
        for name, dist in self.space.items():
            known = name in params and not self._without_effect(params, name)
            if isinstance(dist, CategoricalDistribution):
                at = dist.to_internal_repr(params[name]) if known else None
                columns += [0.5 * (at == i) for i in range(len(dist.choices))]
            else:
                columns.append(_scaled(dist, params[name]) if known else 0.0)
        return np.array(columns)


class RiskModel:
    """The latest `Risk`, fitted anew now and then.

    Which trials it is fitted to, and so what it says, depends on the trials shown to it and on
    nothing else: of n that are evidence the first LEAST * GROWTH^k <= n by number, and of those,
    where they are more than MOST, as many of either kind as there is room for, half of them the
    latest and half of them evenly spread over the rest.
    """

    def __init__(
        self,
        without_effect: Callable[[Mapping[str, Any], str], bool] = _never,
    ) -> None:
        self._without_effect = without_effect
        self._fitted: tuple[tuple[str, int, int], Risk | None] | None = None

    def of(self, study: str, trials: Sequence[FrozenTrial]) -> Risk | None:
        """What `trials`, in the order of their numbers, say; None before there is evidence of both
        kinds, and where the latest trial was drawn from another space.
        """
        # What ended or was pruned has not diverged; what failed otherwise might have.
        complete, pruned = TrialState.COMPLETE, TrialState.PRUNED
        evidence = [
            t for t in trials if t.state is complete or t.state is pruned or has_diverged(t)
        ]
        if len(evidence) < LEAST:
            return None
        last = evidence[-1].distributions
        evidence = evidence[: _fit_size(len(evidence))]
        # No trial takes its result back, so these say which they are.
        key = (study, len(evidence), evidence[-1].number)
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = key, self._fit(evidence)
        risk = self._fitted[1]
        if risk is None or any(last.get(name) != dist for name, dist in risk.space.items()):
            return None
        return risk

    def _fit(self, evidence: Sequence[FrozenTrial]) -> Risk | None:
        diverged = [i for i, trial in enumerate(evidence) if has_diverged(trial)]
        fine = [i for i, trial in enumerate(evidence) if not has_diverged(trial)]
        if not diverged or not fine:
            return None
        room = max(MOST // 2, MOST - len(fine)), max(MOST // 2, MOST - len(diverged))
        chosen = [evidence[i] for i in sorted(_thin(diverged, room[0]) + _thin(fine, room[1]))]
        space = dict(chosen[0].distributions)
        for trial in evidence:
            for name in [n for n, dist in space.items() if trial.distributions.get(n) != dist]:
                del space[name]
        space = {name: dist for name, dist in space.items() if not dist.single()}
        if not space:
            return None
        which = np.array([has_diverged(trial) for trial in chosen])
        return Risk(space, [trial.params for trial in chosen], which, self._without_effect)


def _fit_size(n: int) -> int:
    size = LEAST
    while (larger := max(size + 1, int(size * GROWTH))) <= n:
        size = larger
    return size


def _thin(numbers: list[int], most: int) -> list[int]:
    if len(numbers) <= most:
        return numbers
    n_latest = most // 2
    rest, latest = numbers[:-n_latest], numbers[-n_latest:]
    spread = np.linspace(0, len(rest) - 1, most - n_latest).round().astype(int)
    return [rest[i] for i in spread] + latest


def _scaled(dist: BaseDistribution, value: float) -> float:
    assert isinstance(dist, FloatDistribution | IntDistribution)
    low, high, at = float(dist.low), float(dist.high), float(value)
    if dist.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return 2 * (at - low) / (high - low) - 1
