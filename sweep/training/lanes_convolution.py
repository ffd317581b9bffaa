"""Convolutions and poolings of lanes, written out in operations that map over any number of lanes.

PyTorch maps a convolution over models as one convolution with a group a model: slow to begin,
and compiled for one number of models only. Here it is the product of the filters with a matrix of
patches (im2col: Chellapilla, Puri and Simard 2006), like a linear layer's. Rows of the batch come
last in memory: shifts and windows then never cut through what a processor takes at once.
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

Size = int | Sequence[int]


class WrittenOut(TorchFunctionMode):
    """Within it, convolutions without groups are `convolve`, poolings without overlap `max_pool`.

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
            if call.pop("groups", 1) == 1 and _has_sides(call, CONVOLUTIONS[func]):
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
    lengths = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[1:], reach, strides, strict=False)]
    windows = []
    for place in itertools.product(*(range(k) for k in kernel)):
        begins = [i * d for i, d in zip(place, dilations, strict=True)]
        window = tuple(
            slice(b, b + s * (n - 1) + 1, s)
            for b, s, n in zip(begins, strides, lengths, strict=True)
        )
        windows.append(x[(slice(None), *window)])
    patches = torch.stack(windows, 1).flatten(0, 1).flatten(1)
    products = weight.flatten(1) @ patches
    if bias is not None:
        products = products + bias.unsqueeze(1)
    outputs: Tensor = products.reshape(-1, *lengths, input.shape[0]).movedim(-1, 0)
    return outputs


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
