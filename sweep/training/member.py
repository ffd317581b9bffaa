"""A member: one trial's model on one fold. What it is given, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.problem.prepare import Problem
from sweep.problem.randomness import Stream, derive_seed, permutation
from sweep.spec import Setting, StudySpec

HELD_OUT = 0.1


class Member(NamedTuple):
    """One trial on one fold; `trial` and `fold` together name it."""

    trial: int
    fold: int
    setting: Setting

    @property
    def name(self) -> tuple[int, int]:
        return self.trial, self.fold


@dataclass(frozen=True)
class Plan:
    """How long a member trains, and on which rows.

    An epoch visits `train` once in batches of `batch` rows, in the order of `rows_of`. The last
    short batch is kept, unless the model's rows interact.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64] | None
    test: NDArray[np.int64]
    batch: int
    steps_per_epoch: int
    epochs: int

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def is_full_batch(self) -> bool:
        return self.batch == len(self.train)

    def rows_of(self, seed: int, fold: int, epoch: int) -> NDArray[np.int64]:
        """The training rows in an epoch's order, drawn from (seed, fold, epoch). A batch that
        holds all of them has no order: they come as they are."""
        if self.is_full_batch:
            return self.train
        order: NDArray[np.int64] = self.train[permutation(seed, fold, epoch, len(self.train))]
        return order


def make_plan(problem: Problem, spec: StudySpec, member: Member, rows_interact: bool) -> Plan:
    """The plan of one member."""
    fold, setting = problem.folds[member.fold], member.setting
    train, held_out = fold.train, None
    if setting.early_stopping is not None:
        if setting.early_stopping.on == "inner":
            train, held_out = hold_out(problem, spec, member.fold)
        else:
            held_out = fold.test
    rows = len(train)
    batch = rows if setting.batch_size is None else min(setting.batch_size, rows)
    steps = rows // batch if rows_interact else math.ceil(rows / batch)
    return Plan(train, held_out, fold.test, batch, steps, setting.epochs)


def hold_out(
    problem: Problem, spec: StudySpec, fold: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """10% of a fold's training rows, kept apart as the folds themselves are: by group, the
    latest rows of a time series, else at random and (classification) by class where possible.
    """
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    train = problem.folds[fold].train
    seed = derive_seed(spec.seed, fold, Stream.HELD_OUT) % 2**32
    if spec.fold_kind == "time_series":
        cut = len(train) - max(1, round(HELD_OUT * len(train)))
        return train[:cut], train[cut:]
    if problem.groups is not None and spec.fold_kind in ("group", "column"):
        groups = np.asarray(problem.groups)[train]
        if len(np.unique(groups)) > 1:
            splitter = GroupShuffleSplit(1, test_size=HELD_OUT, random_state=seed)
            keep, held = next(splitter.split(train, groups=groups))
            return train[np.sort(keep)], train[np.sort(held)]
    labels = None
    if problem.kind != "regression":
        y = problem.y_of(fold).numpy()[train]
        counts = np.unique(y, return_counts=True)[1]
        held_rows = math.ceil(HELD_OUT * len(train))
        if counts.min() >= 2 and len(counts) <= min(held_rows, len(train) - held_rows):
            labels = y
    keep, held = train_test_split(train, test_size=HELD_OUT, random_state=seed, stratify=labels)
    return np.sort(keep), np.sort(held)


def learning_rate_at(
    step: NDArray[np.int64] | int, setting: Setting, plan: Plan
) -> NDArray[np.float64]:
    """The learning rate of update `step` (from 0), as large as the number format allows.

    It is `learning_rate` times a factor, which rises linearly over the first `warmup` epochs;
    after them, of what is left, constant: 1; cosine: (1 + cos(pi * t / T)) / 2 (Loshchilov and
    Hutter 2017, arXiv 1608.03983); step: factor ** (epoch // every), epochs counted from the
    start.
    """
    t = np.asarray(step, dtype=np.float64)
    warm = round(setting.warmup * plan.steps_per_epoch)
    ramp = np.minimum(1.0, (t + 1) / warm) if warm else np.ones_like(t)
    if setting.schedule == "cosine":
        left = max(1, plan.steps - warm)
        shape = (1 + np.cos(np.pi * np.clip((t - warm) / left, 0.0, 1.0))) / 2
        # Never exactly 0: a proximal step divides by the learning rate.
        shape = np.maximum(shape, 1e-12)
    elif setting.schedule == "step":
        epoch = np.floor(t / plan.steps_per_epoch)
        shape = setting.schedule_factor ** np.floor(epoch / setting.schedule_every)
    else:
        shape = np.ones_like(t)
    return np.minimum(setting.learning_rate * ramp * shape, np.finfo(setting.dtype).max)


@dataclass(frozen=True)
class Failure:
    """Why a member did not finish: the `failure` object of the contract, fold included."""

    kind: str
    reason: str
    fold: int
    epoch: int
    step: int
    message: str
    advice: str | None = None
    layer: str | None = None
    loss: float | None = None
    grad_norm: float | None = None
    losses: tuple[float | None, ...] = ()
    grad_norms: tuple[float | None, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "reason": self.reason,
            "fold": self.fold,
            "epoch": self.epoch,
            "step": self.step,
            "layer": self.layer,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "message": self.message,
            "advice": self.advice,
            "losses": list(self.losses),
            "grad_norms": list(self.grad_norms),
        }


@dataclass(frozen=True)
class Outcome:
    """How a member ended. `stopped`: it was told to (pruned, or a sibling fold diverged first)."""

    score: float | None = None
    train_score: float | None = None
    nonzero: int | None = None
    more_scores: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    stopped: bool = False


class Epoch(NamedTuple):
    """A member finished an epoch with this score on its fold's test rows."""

    member: Member
    epoch: int
    score: float


class Done(NamedTuple):
    """A member ended."""

    member: Member
    outcome: Outcome


Event = Epoch | Done


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
