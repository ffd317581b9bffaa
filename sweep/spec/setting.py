"""One trial: a study file with every knob a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from sweep.spec.knobs import Count, NonNegative, Strict

WITH_MOMENTUM = ("sgd", "normalized_sgd", "rmsprop")
"""Optimizers that take `momentum`; adam and adamw have their own."""
if TYPE_CHECKING:
    from sweep.spec.study import TrainSpec


class StepSchedule(Strict):
    """The learning rate times `factor` after every `every` epochs."""

    kind: Literal["step"] = "step"
    every: Count
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class EarlyStopping(Strict):
    """Stop when the loss on held-out rows has not improved for `patience` epochs.

    `on: inner` holds out 10% of the fold's training rows; `on: fold` looks at the scored fold,
    which makes its score optimistic. The weights of the best epoch are kept.
    """

    patience: Count = 5
    min_delta: NonNegative = 0.0
    on: Literal["inner", "fold"] = "inner"


@dataclass(frozen=True)
class Setting:
    """Everything that decides how one trial trains, folds and study seed aside."""

    model_kind: str
    model: Mapping[str, Any]
    regularizer: str
    lam: float
    l1_ratio: float
    optimizer: str
    learning_rate: float
    momentum: float
    nesterov: bool
    weight_decay: float
    decoupled_weight_decay: bool
    clip_norm: float | None
    clip_percentile: float | None
    clip_layer: float | None
    clip_value: float | None
    batch_size: int | None
    epochs: int
    schedule: str
    schedule_every: int
    schedule_factor: float
    warmup: float
    l1: str
    dtype: str
    early_stopping: EarlyStopping | None
    tolerance: float


def resolve(
    kind: str,
    model: Mapping[str, Any],
    values: Mapping[str, Any],
    train: TrainSpec,
) -> Setting:
    """A Setting from knob values; what cannot matter is set to its neutral value."""
    regularizer, optimizer = values["regularizer"], values["optimizer"]
    schedule, epochs = values["schedule"], values["epochs"]
    every, factor = max(1, epochs // 3), 0.1
    if isinstance(schedule, StepSchedule):
        every, factor, schedule = schedule.every, schedule.factor, "step"
    momentum = values["momentum"] if optimizer in WITH_MOMENTUM else 0.0
    decoupled = bool(values["decoupled_weight_decay"]) or optimizer == "adamw"
    if optimizer == "adam" and decoupled:
        optimizer = "adamw"
    batch_size = values["batch_size"]
    return Setting(
        model_kind=kind,
        model={
            key: value.model_dump() if isinstance(value, BaseModel) else value
            for key, value in model.items()
        },
        regularizer=regularizer,
        lam=0.0 if regularizer == "none" or values["lambda"] is None else float(values["lambda"]),
        l1_ratio=float(values["l1_ratio"]),
        optimizer=optimizer,
        learning_rate=float(values["learning_rate"] or 0.0),
        momentum=float(momentum),
        nesterov=bool(values["nesterov"]) and momentum > 0 and optimizer == "sgd",
        weight_decay=float(values["weight_decay"]),
        decoupled_weight_decay=decoupled,
        clip_norm=values["clip_norm"],
        clip_percentile=values["clip_percentile"],
        clip_layer=values["clip_layer"],
        clip_value=values["clip_value"],
        batch_size=None if batch_size == "full" else batch_size,
        epochs=epochs,
        schedule=schedule,
        schedule_every=every,
        schedule_factor=factor,
        warmup=float(values["warmup"]),
        l1=values["l1"],
        dtype=train.dtype,
        early_stopping=train.early_stopping,
        tolerance=train.tolerance,
    )
