"""A knob: a value, or an Optuna distribution where the value would stand.

`{low, high[, log][, step]}` is a range, `{choices: [...]}` a list of alternatives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from typing_extensions import TypeAliasType

V = TypeVar("V")
E = TypeVar("E")
# An alias's own variables: pydantic takes a model generic in its own V for filled in.
Value = TypeVar("Value")
End = TypeVar("End")


class Strict(BaseModel):
    """Unknown keys, wrong types and non-finite numbers are refused, never guessed at."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FloatRange(Strict, Generic[E]):
    """All numbers of [low, high], uniformly or (`log`) uniformly in their logarithm."""

    low: E
    high: E
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange[E]:
        low, high = _check_ends(self.low, self.high, self.log)
        if self.step is not None:
            if self.log:
                raise ValueError("log and step exclude each other; leave one out")
            cells = (high - low) / self.step
            if abs(cells - round(cells)) > 1e-8 * max(1.0, cells):
                raise ValueError(f"step {self.step} does not divide {low} to {high}")
        return self


class IntRange(Strict, Generic[E]):
    """The integers low, low + step, ..., high."""

    low: E
    high: E
    log: bool = False
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> IntRange[E]:
        low, high = _check_ends(self.low, self.high, self.log)
        if self.log and self.step != 1:
            raise ValueError("log and step exclude each other; leave one out")
        if (high - low) % self.step:
            raise ValueError(f"step {self.step} does not divide {low} to {high}")
        return self


def _check_ends(low: Any, high: Any, log: bool) -> tuple[float, float]:
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    if log and low <= 0:
        raise ValueError(f"log needs low > 0, not {low}")
    return low, high


class Choices(Strict, Generic[V]):
    """One of the listed values, in no order."""

    choices: Annotated[list[V], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Choices[V]:
        texts = [encode_choice(choice) for choice in self.choices]
        for i, text in enumerate(texts):
            # Optuna tells choices apart by ==, which takes 1, 1.0 and True for one.
            if text in texts[:i]:
                raise ValueError(f"{json.dumps(text)} is listed twice")
        return self


def encode_choice(value: Any) -> bool | int | float | str | None:
    """What the database holds for a choice: itself if a scalar, else its JSON text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)


Distribution = FloatRange[Any] | IntRange[Any] | Choices[Any]


def _form(value: Any) -> str:
    if isinstance(value, FloatRange | IntRange):
        return "<range>"
    if isinstance(value, Choices):
        return "<choices>"
    if isinstance(value, Mapping):
        if "choices" in value:
            return "<choices>"
        if value.keys() & {"low", "high"}:
            return "<range>"
    return "<value>"


def _open_form(value: Any) -> str:
    """As `_form`, but a range whose ends are whole numbers is a range of integers."""
    form = _form(value)
    if form == "<range>" and not isinstance(value, FloatRange):
        if isinstance(value, IntRange):
            return "<integers>"
        ends = [value.get("low"), value.get("high"), value.get("step", 1)]
        if all(isinstance(end, int) for end in ends):
            return "<integers>"
    return form


Knob = TypeAliasType(
    "Knob",
    Annotated[
        Annotated[Value, Tag("<value>")] | Annotated[Choices[Value], Tag("<choices>")],
        Discriminator(_form),
    ],
    type_params=(Value,),
)
FloatKnob = TypeAliasType(
    "FloatKnob",
    Annotated[
        Annotated[Value, Tag("<value>")]
        | Annotated[FloatRange[End], Tag("<range>")]
        | Annotated[Choices[Value], Tag("<choices>")],
        Discriminator(_form),
    ],
    type_params=(Value, End),
)
IntKnob = TypeAliasType(
    "IntKnob",
    Annotated[
        Annotated[Value, Tag("<value>")]
        | Annotated[IntRange[End], Tag("<range>")]
        | Annotated[Choices[Value], Tag("<choices>")],
        Discriminator(_form),
    ],
    type_params=(Value, End),
)

Scalar = None | bool | int | float | str
OpenKnob = Annotated[
    Annotated[Scalar | list[Any] | dict[str, Any], Tag("<value>")]
    | Annotated[FloatRange[float], Tag("<range>")]
    | Annotated[IntRange[int], Tag("<integers>")]
    | Annotated[Choices[Scalar | list[Any]], Tag("<choices>")],
    Discriminator(_open_form),
]
"""A knob of a user's own model: any value, or a distribution."""

Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1)]
Switch = Knob[bool]
Full = Literal["full"]
