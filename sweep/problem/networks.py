"""The built-in networks: x (B, *input_shape) -> outputs (B, n_outputs)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sweep.errors import SpecError
from sweep.problem.dropout import KeyedDropout
from sweep.problem.recurrent import GRU, LSTM, RNN, Layer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "identity": lambda x: x,
}


def make_dropout(rate: float, layer: int) -> nn.Module:
    """Without dropout no mask is drawn: nothing is cheaper than a mask of ones."""
    return KeyedDropout(rate, layer) if rate > 0 else nn.Identity()


class Linear(nn.Module):
    """x W' + b."""

    def __init__(self, n_inputs: int, n_outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_outputs, bias=bias)

    def forward(self, x: Float[Tensor, B * n]) -> Float[Tensor, "B K"]:
        outputs: Tensor = self.linear(x.flatten(1))
        return outputs


class MLP(nn.Module):
    """Per hidden layer: linear, normalization, activation, dropout; then a linear head.

    A layer before batch normalization has no bias: what it adds, normalization takes away.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        hidden: Sequence[int],
        activation: str,
        normalization: str,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        widths = [n_inputs, *hidden]
        norm = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[normalization]
        self.hidden = nn.ModuleList(
            nn.Linear(before, after, bias=bias and normalization != "batch")
            for before, after in pairwise(widths)
        )
        self.norm = nn.ModuleList(norm(width) for width in hidden)
        self.dropout = nn.ModuleList(make_dropout(dropout, i) for i in range(len(hidden)))
        self.head = nn.Linear(widths[-1], n_outputs, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Float[Tensor, B * n]) -> Float[Tensor, "B K"]:
        x = x.flatten(1)
        for linear, norm, dropout in zip(self.hidden, self.norm, self.dropout, strict=True):
            x = dropout(self.activation(norm(linear(x))))
        outputs: Tensor = self.head(x)
        return outputs


class CNN(nn.Module):
    """Per entry of `channels`: convolution, normalization, activation, 2 x 2 max pooling; then one
    hidden layer with dropout, and a linear head. Pooling ends where a side would fall below 1.
    A convolution before batch normalization has no bias.

    input_shape is (C, H, W), or (H, W) for one channel.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_outputs: int,
        *,
        channels: Sequence[int],
        kernel_size: int,
        hidden: int,
        activation: str,
        normalization: str,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        if len(input_shape) not in (2, 3):
            raise SpecError(
                f"model.kind cnn needs images (height, width) or (channels, height, width), but a "
                f"row of these data has shape {input_shape}. Give data.shape, as [1, 8, 8]."
            )
        if kernel_size % 2 == 0:
            raise SpecError(
                f"model.kernel_size: {kernel_size} is even, which would shift the image; "
                f"use {kernel_size - 1} or {kernel_size + 1}."
                if kernel_size > 2
                else f"model.kernel_size: {kernel_size} is even; use 1 or 3."
            )
        depth, height, width = (1, *input_shape)[-3:]
        depths = [depth, *channels]
        norm = {"none": nn.Identity, "batch": nn.BatchNorm2d}[normalization]
        self.convolution = nn.ModuleList(
            nn.Conv2d(
                before,
                after,
                kernel_size,
                padding=kernel_size // 2,
                bias=bias and normalization != "batch",
            )
            for before, after in pairwise(depths)
        )
        self.norm = nn.ModuleList(norm(depth) for depth in channels)
        self.pools = 0
        for _ in channels:
            if min(height, width) < 2:
                break
            height, width, self.pools = height // 2, width // 2, self.pools + 1
        self.hidden = nn.Linear(depths[-1] * height * width, hidden, bias=bias)
        self.dropout = make_dropout(dropout, 0)
        self.head = nn.Linear(hidden, n_outputs, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.input_depth = depth

    def forward(self, x: Float[Tensor, B * n]) -> Float[Tensor, "B K"]:
        x = x.reshape(x.shape[0], self.input_depth, *x.shape[-2:])
        for i, (convolution, norm) in enumerate(zip(self.convolution, self.norm, strict=True)):
            x = self.activation(norm(convolution(x)))
            if i < self.pools:
                x = F.max_pool2d(x, 2)
        outputs: Tensor = self.head(self.dropout(self.activation(self.hidden(x.flatten(1)))))
        return outputs


class Recurrent(nn.Module):
    """Stacked RNN, GRU or LSTM layers; a linear head reads the last step's state.

    Dropout acts on what each layer passes on: its states to the next layer, the last state to the
    head. input_shape is (steps, features).
    """

    def __init__(
        self,
        kind: str,
        input_shape: tuple[int, ...],
        n_outputs: int,
        *,
        hidden: int,
        layers: int,
        dropout: float,
        bias: bool,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if len(input_shape) != 2:
            raise SpecError(
                f"model.kind {kind} needs sequences (steps, features), but a row of these data has "
                f"shape {input_shape}. Give data.shape, as [20, 6]."
            )
        widths = [input_shape[1], *[hidden] * (layers - 1)]
        make: Callable[..., nn.Module] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}[kind]
        extra = {"nonlinearity": activation} if kind == "rnn" else {}
        self.recurrent = nn.ModuleList(make(width, hidden, bias=bias, **extra) for width in widths)
        self.dropout = nn.ModuleList(make_dropout(dropout, i) for i in range(layers))
        self.head = nn.Linear(hidden, n_outputs, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T D"], nudges: Sequence[Tensor] | None = None
    ) -> Float[Tensor, "B K"] | tuple[Tensor, list[Tensor]]:
        """With nudges, one a layer (see RNN): outputs, and the slope of every layer's states."""
        last = len(self.recurrent) - 1
        slopes = []
        for i, (recurrent, dropout) in enumerate(zip(self.recurrent, self.dropout, strict=True)):
            assert isinstance(recurrent, Layer)
            if nudges is None:
                states = recurrent.states(x)
            else:
                assert isinstance(recurrent, RNN), "a study that asks for it has model.kind rnn"
                states = recurrent.states(x, nudges[i])
                slopes.append(recurrent.slope(torch.stack(states, 1)))
            x = dropout(states[-1] if i == last else torch.stack(states, 1))
        outputs: Tensor = self.head(x)
        return outputs if nudges is None else (outputs, slopes)
