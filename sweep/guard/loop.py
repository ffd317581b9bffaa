"""`sweep.watch`: the same rules and the same diagnosis for a training loop that sweep does not run.

    guard = sweep.watch(model, optimizer)
    for x, y in batches:
        loss = criterion(model(x), y)
        loss.backward()
        guard.check(loss)             # before any clipping; raises sweep.Diverged
        optimizer.step()

A check costs a gradient's norm and a parameter's maximum a tensor. On the CPU it is judged at once,
before the update; on an accelerator the numbers stay there and are fetched every `every` checks, so
that the host does not wait for the device. The step reported is the first bad one all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol, SupportsFloat

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sweep.errors import Diverged, RequestError
from sweep.guard.findings import diagnose
from sweep.guard.gradients import UNKNOWN, Sizes, exact, fetch, measure
from sweep.guard.judge import Judge
from sweep.spec import divergence_rules

EVERY = 16
"""Checks between two looks at an accelerator."""
MOST_SKIPS = 40
"""Updates in a row that a GradScaler may skip; by then it has divided its scale by 2^40."""


class HasAttributes(Protocol):
    """Optuna's trials."""

    def set_user_attr(self, key: str, value: Any) -> None: ...


class _Check(NamedTuple):
    loss: float | Tensor
    sizes: Sizes
    rates: tuple[Any, ...]


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    trial: HasAttributes | None = None,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float | None = None,
    every: int | None = None,
    divergence: Mapping[str, Any] | None = None,
) -> Guard:
    """A guard for the training of `model` by one optimizer or several.

    `trial`: an Optuna trial, which gets the attribute `failure` before Diverged is raised.
    `scaler`: updates that it skips for an infinite gradient are no divergence; check after
    `scaler.unscale_(optimizer)`. `clip_norm`: what the norm is clipped to, for the advice.
    `every`: checks between two looks (default 1 on the CPU, 16 elsewhere). `divergence`: rules as
    in a study file, such as {"patience": 20}. Raises RequestError for what is no model, no
    optimizer of its parameters, or no rule.
    """
    return Guard(model, optimizer, trial, scaler, clip_norm, every, divergence)


class Guard:
    """Watches one run of training; made by `watch`. `failure` is the diagnosis, if it exploded."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        trial: HasAttributes | None,
        scaler: torch.amp.GradScaler | None,
        clip_norm: float | None,
        every: int | None,
        divergence: Mapping[str, Any] | None,
    ) -> None:
        self.optimizers = _optimizers(optimizer)
        self.named = _parameters(model, self.optimizers)
        _check_options(trial, scaler, clip_norm, every, divergence)
        self.parameters = list(self.named.values())
        self.trial, self.scaler, self.clip_norm = trial, scaler, clip_norm
        on_cpu = all(p.device.type == "cpu" for p in self.parameters)
        self.every = every or (1 if on_cpu else EVERY)
        self.failure: dict[str, Any] | None = None
        rules = divergence_rules(divergence or {}, "sweep.watch")
        kinds = {p.dtype for p in self.parameters if p.is_floating_point() or p.is_complex()}
        widest = max(kinds, key=lambda dtype: dtype.itemsize)
        self._judge = Judge(len(self.parameters), rules, torch.finfo(widest).max)
        self._waiting: list[_Check] = []
        self._skips = 0

    @property
    def step(self) -> int:
        """Updates that were looked at and found good."""
        return self._judge.step

    def check(self, loss: float | Tensor, sizes: Sizes | None = None) -> None:
        """Looks at an update's loss and gradients; raises Diverged where training has exploded.

        Once an update, between `backward` and `optimizer.step`, and before clipping, which hides
        an overflow. `sizes`: what `measure` returned, where the gradients are gone by now.
        """
        if self.failure is not None:
            raise self._diverged(self.failure)
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise RequestError(
                    f"guard.check was given a loss of shape {tuple(loss.shape)}; give one number, "
                    "such as loss.mean()."
                )
            # A copy: a running sum may be changed in place before anybody looks.
            loss = loss.detach().clone()
        elif not isinstance(loss, SupportsFloat):
            raise RequestError(
                f"guard.check was given a {type(loss).__name__} as loss; give a number, or a "
                "tensor that holds one."
            )
        here = sizes is None
        rates = tuple(group["lr"] for o in self.optimizers for group in o.param_groups)
        sizes = self.measure() if sizes is None else sizes
        if self.step == 0 and not sizes.places:
            raise RequestError(
                "guard.check found no gradient: call it after loss.backward(), and before "
                "optimizer.step() and zero_grad()."
            )
        self._waiting.append(_Check(loss, sizes, rates))
        if len(self._waiting) >= self.every:
            self._look(here)

    def measure(self) -> Sizes:
        """The sizes of gradients and parameters as they are now."""
        return measure(self.parameters)

    def flush(self) -> None:
        """Looks at what is still waiting, at the end of training; raises as `check` does."""
        if self._waiting:
            self._look(here=False)

    def record(self, trial: HasAttributes) -> None:
        """Writes the diagnosis, if there is one, to a trial's attribute `failure`."""
        if self.failure is not None:
            trial.set_user_attr("failure", self.failure)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on watching the same run: plain numbers and lists."""
        self.flush()
        return {"names": list(self.named), "skips": self._skips, **self._judge.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict()`; raises RequestError for another model's, or none."""
        if not {"names", "skips", "weights", "watch", "rows"} <= set(state):
            raise RequestError("The guard's state is not one that guard.state_dict() returned.")
        if list(state["names"]) != list(self.named):
            raise RequestError(
                f"The guard's state is of another model: it has {len(state['names'])} parameter "
                f"tensors, from {state['names'][0]} on; this one has {len(self.named)}, from "
                f"{next(iter(self.named))} on."
            )
        self._judge.load_state_dict(state)
        self._skips, self._waiting, self.failure = int(state["skips"]), [], None

    def _look(self, here: bool) -> None:
        """Fetches what waits and judges it in order. `here`: the last one's gradients still are."""
        n = len(self.parameters)
        checks, self._waiting = self._waiting, []
        losses = [check.loss for check in checks if isinstance(check.loss, Tensor)]
        tensors = [t for check in checks for t in (check.sizes.norms, check.sizes.weights)]
        numbers = iter(fetch([*losses, *tensors]))
        found = [next(numbers) if isinstance(c.loss, Tensor) else float(c.loss) for c in checks]
        for i, (check, loss) in enumerate(zip(checks, found, strict=True)):
            whole, weights = (
                check.sizes.of_all([next(numbers) for _ in check.sizes.places], n, default)
                for default in (0.0, UNKNOWN)
            )
            if here and i == len(checks) - 1 and not all(map(math.isfinite, whole)):
                whole = exact(self.parameters)
            if self._is_skipped(loss, whole):
                continue
            rates = tuple(float(rate) for rate in check.rates)
            if self._judge.take(loss, whole, weights, rates):
                self.failure = diagnose(self._judge, self.named, self.optimizers, self.clip_norm)
                if self.trial is not None:
                    self.record(self.trial)
                raise self._diverged(self.failure)

    def _is_skipped(self, loss: float, norms: Sequence[float]) -> bool:
        """Whether a GradScaler leaves this update out and goes on with a smaller scale."""
        if self.scaler is None or not self.scaler.is_enabled():
            return False
        infinite = not all(map(math.isfinite, norms)) and math.isfinite(loss)
        self._skips = self._skips + 1 if infinite else 0
        return infinite and self._skips <= MOST_SKIPS

    @staticmethod
    def _diverged(failure: dict[str, Any]) -> Diverged:
        return Diverged(f"{failure['message']}; {failure['advice']}", failure)


def _optimizers(given: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    listed: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    for each in listed:
        if not isinstance(each, Optimizer):
            raise RequestError(
                f"sweep.watch was given a {type(each).__name__} as optimizer; give a "
                "torch.optim.Optimizer, or a list of them."
            )
    return listed


def _check_options(trial: Any, scaler: Any, clip_norm: Any, every: Any, divergence: Any) -> None:
    """What would else be noticed when training has exploded, or never."""
    if every is not None and (not isinstance(every, Integral) or int(every) < 1):
        raise RequestError(f"every={every!r} was given; give 1 or more checks between two looks.")
    if clip_norm is not None and (not isinstance(clip_norm, Real) or not float(clip_norm) > 0):
        raise RequestError(f"clip_norm={clip_norm!r} was given; give a number above 0, or None.")
    if scaler is not None and not hasattr(scaler, "is_enabled"):
        raise RequestError(f"scaler={scaler!r} was given; give a torch.amp.GradScaler.")
    if trial is not None and not hasattr(trial, "set_user_attr"):
        raise RequestError(f"trial={trial!r} was given; give the trial that Optuna passed.")
    if divergence is not None and not isinstance(divergence, Mapping):
        raise RequestError(
            f"divergence={divergence!r} was given; give a dict of rules, as in {{'patience': 20}}."
        )


def _parameters(model: Any, optimizers: Sequence[Optimizer]) -> dict[str, nn.Parameter]:
    """The model's parameters by name; frozen ones too, since they may be thawed."""
    if not isinstance(model, nn.Module):
        given = (
            f"the class {model.__name__}"
            if isinstance(model, type)
            else f"a {type(model).__name__}"
        )
        raise RequestError(f"sweep.watch was given {given}; give an nn.Module.")
    named = dict(model.named_parameters())
    if not named:
        raise RequestError(f"sweep.watch: the {type(model).__name__} has no parameters to watch.")
    known = {id(p) for p in named.values()}
    if not any(id(p) in known for o in optimizers for g in o.param_groups for p in g["params"]):
        raise RequestError(
            "sweep.watch: none of the model's parameters is in the optimizer. "
            "Make the optimizer from this model's parameters()."
        )
    return named
