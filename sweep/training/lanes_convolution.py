"""Convolutions and poolings of lanes, written out in operations that map over any number of lanes.

PyTorch maps a convolution over models as one convolution with a group a model: slow to begin,
and compiled for one number of models only. Here it is an operator of lanes (lanes_operators.py):
eagerly the product of the filters with a matrix of patches (im2col: Chellapilla, Puri and Simard
2006), compiled a loop of its own. Rows of the batch come last in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sweep.training.lanes_operators import CONVOLVE, INPUT_GRADIENT, WEIGHT_GRADIENT

Size = int | Sequence[int]
SIDES = 3
"""Of the operators; a convolution of fewer has the last of them."""


class WrittenOut(TorchFunctionMode):
    """Within it, convolutions are `convolve`, poolings without overlap `max_pool`.

    What has other options goes on to PyTorch.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in CONVOLUTIONS:
            call = dict(zip(CONVOLVED_WITH, args, strict=False)) | given
            if _has_sides(call, CONVOLUTIONS[func]):
                return convolve(**call)
        elif func in POOLINGS:
            call = dict(zip(POOLED_WITH, args, strict=False)) | given
            kernel = _each(call.pop("kernel_size"), POOLINGS[func])
            apart = call.pop("stride", None) or kernel
            if _each(apart, POOLINGS[func]) == kernel and _has_sides(call, POOLINGS[func]):
                image = call.pop("input")
                if all(value == POOLED_PLAINLY[name] for name, value in call.items()):
                    return max_pool(image, kernel)
        return func(*args, **given)


CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
CONVOLVED_WITH = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
POOLINGS: dict[Callable[..., Any], int] = {F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3}
POOLED_PLAINLY = {"padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
POOLED_WITH = ("input", "kernel_size", "stride", *POOLED_PLAINLY)


def _has_sides(call: dict[str, Any], count: int) -> bool:
    """Whether the input is a batch, not a single row."""
    dimensions: int = call["input"].dim()
    return dimensions == count + 2


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """torch.conv{1,2,3}d of input (B, C, *sides) by weight (K, C, *kernel): (B, K, *sides')."""
    kernel = weight.shape[2:]
    strides, dilations = _each(stride, len(kernel)), _each(dilation, len(kernel))
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    if isinstance(padding, str):
        around = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
    else:
        around = [(p, p) for p in _each(padding, len(kernel))]
    x = input.movedim(0, -1)
    if any(itertools.chain(*around)):
        x = F.pad(x, [0, 0, *itertools.chain(*reversed(around))])
    no_more = [1] * (SIDES - len(kernel))
    x = x.reshape(1, len(x), *no_more, *x.shape[1:])
    filters = weight.reshape(1, *weight.shape[:2], *no_more, *kernel)
    apart = ([*no_more, *strides], [*no_more, *dilations])
    outputs = Convolution.of(x, filters, *apart, groups)
    outputs = outputs.reshape(*outputs.shape[1:2], *outputs.shape[2 + len(no_more) :])
    if bias is not None:
        outputs = outputs + bias.reshape(-1, *[1] * (len(kernel) + 1))
    return outputs.movedim(-1, 0)


class _OfLanes(torch.autograd.Function):
    """An operator of two tensors whose first axis is the lanes; mapping makes more of these."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, *ctx.rest = inputs
        ctx.save_for_backward(first, second)

    @classmethod
    def of(cls, first: Tensor, second: Tensor, *rest: Any) -> Tensor:
        made: Tensor = cls.apply(first, second, *rest)  # type: ignore[no-untyped-call]
        return made

    @classmethod
    def vmap(
        cls, info: Any, in_dims: tuple[int | None, ...], first: Tensor, second: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        lanes = len(first) if in_dims[0] is None else first.movedim(in_dims[0], 0).shape[1]
        folded = [
            _folded(t, dim, info.batch_size)
            for t, dim in zip((first, second), in_dims, strict=False)
        ]
        made = cls.of(*folded, *rest)
        return made.reshape(info.batch_size, lanes, *made.shape[1:]), 0


def _folded(t: Tensor, dim: int | None, count: int) -> Tensor:
    t = t.expand(count, *t.shape) if dim is None else t.movedim(dim, 0)
    # Without a copy of what all lanes share.
    return t.squeeze(1) if t.shape[1] == 1 else t.flatten(0, 1)


def _dense(t: Tensor) -> Tensor:
    """With each lane's numbers side by side, as the operators have it."""
    return t if t[:1].is_contiguous() else t.contiguous()


class Convolution(_OfLanes):
    @staticmethod
    def forward(x: Tensor, w: Tensor, *how: Any) -> Any:
        return CONVOLVE(_dense(x), _dense(w), *how)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        needs_x, needs_w, *others = ctx.needs_input_grad
        of_x = InputGradient.of(d, w, x.shape[2:5], *ctx.rest) if needs_x else None
        of_w = WeightGradient.of(d, x, w.shape[3:], *ctx.rest) if needs_w else None
        return of_x, of_w, *(None for _ in others)


class InputGradient(_OfLanes):
    @staticmethod
    def forward(d: Tensor, w: Tensor, sides: Sequence[int], *how: Any) -> Any:
        return INPUT_GRADIENT(_dense(d), _dense(w), sides, *how)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        d, w = ctx.saved_tensors
        _, *how = ctx.rest
        needs_d, needs_w, *others = ctx.needs_input_grad
        of_d = Convolution.of(x, w, *how) if needs_d else None
        of_w = WeightGradient.of(d, x, w.shape[3:], *how) if needs_w else None
        return of_d, of_w, *(None for _ in others)


class WeightGradient(_OfLanes):
    @staticmethod
    def forward(d: Tensor, x: Tensor, kernel: Sequence[int], *how: Any) -> Any:
        return WEIGHT_GRADIENT(_dense(d), _dense(x), kernel, *how)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        d, x = ctx.saved_tensors
        _, *how = ctx.rest
        needs_d, needs_x, *others = ctx.needs_input_grad
        of_d = Convolution.of(x, w, *how) if needs_d else None
        of_x = InputGradient.of(d, w, x.shape[2:5], *how) if needs_x else None
        return of_d, of_x, *(None for _ in others)


def max_pool(input: Tensor, kernel: Sequence[int]) -> Tensor:
    """The largest of each window of input (B, C, *sides); NaN where one is in it.

    What is left over at the end of a side is dropped, as in PyTorch.
    """
    x = input.movedim(0, -1)
    for axis, k in reversed([*enumerate(kernel, start=1)]):
        x = x.narrow(axis, 0, x.shape[axis] // k * k)
        x = x.reshape(*x.shape[:axis], -1, k, *x.shape[axis + 1 :])
    # The axes are now C, side, place, side, place, ..., B.
    x = x.movedim([2 * axis for axis, _ in enumerate(kernel, start=1)], [*range(len(kernel))])
    places = x.flatten(0, len(kernel) - 1)
    largest: Tensor = _Largest.apply(places)  # type: ignore[no-untyped-call]
    return largest.movedim(-1, 0)


class _Largest(torch.autograd.Function):
    """The maximum over the first axis. Of equal ones the first has the gradient, as in PyTorch's
    poolings; torch.maximum would share it out. A NaN has none.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return reduce(torch.maximum, x.unbind(0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, largest = ctx.saved_tensors
        nothing, left, shares = torch.zeros_like(gradient), gradient, []
        for place in x.unbind(0):
            is_it = place == largest
            shares.append(torch.where(is_it, left, nothing))
            left = torch.where(is_it, nothing, left)
        return torch.stack(shares)


def _each(size: Size, count: int) -> list[int]:
    return [size] * count if isinstance(size, int) else [*size] * (count // len(size))
