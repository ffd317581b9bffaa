"""The `model:` section: which network, and its own knobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from sweep.spec.knobs import (
    Count,
    FloatKnob,
    Fraction,
    IntKnob,
    Knob,
    OpenKnob,
    Positive,
    Strict,
    Switch,
)

Activation = Literal["relu", "tanh", "gelu", "silu", "sigmoid", "elu", "leaky_relu", "identity"]
Normalization = Literal["none", "batch", "layer"]


class NormalInit(Strict):
    """Every weight drawn from N(0, normal^2), every bias 0."""

    normal: Positive


Init = Literal["default", "zeros", "xavier", "orthogonal"] | float | NormalInit
"""How weights start: PyTorch's own default (zeros for `linear`), or every weight one number."""


class LinearModel(Strict):
    """Linear regression, or logistic / softmax regression."""

    kind: Literal["linear"]
    bias: Switch = True
    init: Knob[Init] = "default"


class MLPModel(Strict):
    """Fully connected layers of the widths `hidden`."""

    kind: Literal["mlp"]
    hidden: IntKnob[Count | list[Count], Count] = Field(default_factory=lambda: [64])
    activation: Knob[Activation] = "relu"
    dropout: FloatKnob[Fraction, Fraction] = 0.0
    normalization: Knob[Normalization] = "none"
    bias: Switch = True
    init: Knob[Init] = "default"


class CNNModel(Strict):
    """Convolutions (each halved by max pooling) of `channels`, then one hidden layer."""

    kind: Literal["cnn"]
    channels: IntKnob[Count | list[Count], Count] = Field(default_factory=lambda: [16, 32])
    kernel_size: IntKnob[Count, Count] = 3
    hidden: IntKnob[Count, Count] = 64
    activation: Knob[Activation] = "relu"
    dropout: FloatKnob[Fraction, Fraction] = 0.0
    normalization: Knob[Literal["none", "batch"]] = "none"
    bias: Switch = True
    init: Knob[Init] = "default"


class RNNModel(Strict):
    """A plain recurrent network; the last step's state is read out."""

    kind: Literal["rnn"]
    hidden: IntKnob[Count, Count] = 32
    layers: IntKnob[Count, Count] = 1
    activation: Knob[Literal["tanh", "relu"]] = "tanh"
    dropout: FloatKnob[Fraction, Fraction] = 0.0
    bias: Switch = True
    init: Knob[Init] = "default"


class GatedModel(Strict):
    """A GRU or LSTM; the last step's state is read out."""

    kind: Literal["gru", "lstm"]
    hidden: IntKnob[Count, Count] = 32
    layers: IntKnob[Count, Count] = 1
    dropout: FloatKnob[Fraction, Fraction] = 0.0
    bias: Switch = True
    init: Knob[Init] = "default"


class CustomModel(Strict):
    """A user's callable `python:module:name` returning an nn.Module; other keys are its knobs."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, OpenKnob]

    kind: Annotated[str, Field(pattern=r"^python:[\w.]+:\w+$")]


BUILT_IN = ("linear", "mlp", "cnn", "rnn", "gru", "lstm")


def _kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if isinstance(kind, str) and kind.startswith("python:"):
        return "<python>"
    return f"<{kind}>"


ModelSpec = Annotated[
    Annotated[LinearModel, Tag("<linear>")]
    | Annotated[MLPModel, Tag("<mlp>")]
    | Annotated[CNNModel, Tag("<cnn>")]
    | Annotated[RNNModel, Tag("<rnn>")]
    | Annotated[GatedModel, Tag("<gru>")]
    | Annotated[GatedModel, Tag("<lstm>")]
    | Annotated[CustomModel, Tag("<python>")],
    Discriminator(_kind),
]
