"""Dropout whose mask is a function of (seed, fold, step, layer, element), drawn from no generator.

The batched engine and the plain one then drop the same elements, and a replay does too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_32_BITS = 0xFFFFFFFF
# The second factor of the hash, less 2^32: the low 32 bits of a product are the same, and no
# product of it and 32 bits leaves int64.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
_CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def mix(x: Any) -> Any:
    """lowbias32, a bijection of 0..2^32-1 that changes every bit with probability near 1/2.

    Wellons (2018), https://nullprogram.com/blog/2018/07/31/. x: int, int64 array or tensor.
    """
    x = ((x ^ (x >> 16)) * _FIRST) & _32_BITS
    x = ((x ^ (x >> 15)) * _SECOND) & _32_BITS
    return x ^ (x >> 16)


def dropout_key(seed: Any, fold: Any, step: Any) -> Any:
    """The key of one update, in [0, 2^63); int, int64 arrays or tensors, mixed as one likes.

    For a given seed and fold, different steps below 2^32 have different keys.
    """
    low = mix(mix(mix((seed ^ 0x243F6A88) & _32_BITS) ^ fold) ^ step)
    high = mix(mix(mix((seed ^ 0x13198A2E) & _32_BITS) ^ fold) ^ step)
    return ((high & 0x7FFFFFFF) << 32) | low


class KeyedDropout(nn.Module):
    """y = x * keep / (1 - rate), keep = [hash(key, layer, position) >= rate * 2^32].

    position is row-major within the batch, so a short batch uses the first rows of a full one's
    mask. `channels` drops whole channels of (B, C, ...) instead, as nn.Dropout2d does. Within one
    update every call uses the same mask. `rate` and `key` are buffers, so that models which
    differ in them only can be stacked; they are no part of the state dict.

    The hash is `mix` with 32 bits of the key before its first and 31 before its second round, and
    without its last shift, which would change only the low 16 of the bits compared.
    """

    rate: Tensor
    key: Tensor

    def __init__(self, rate: float, layer: int, *, channels: bool = False) -> None:
        super().__init__()
        self.layer, self.channels = layer, channels
        self.register_buffer("rate", torch.tensor(float(rate)), persistent=False)
        self.register_buffer("key", torch.tensor(0, dtype=torch.int64), persistent=False)

    def forward(self, x: Float[Tensor, B * n]) -> Float[Tensor, B * n]:
        if not self.training:
            return x
        shape = [*x.shape[:2], *[1] * (x.ndim - 2)] if self.channels else list(x.shape)
        position = torch.arange(math.prod(shape), device=x.device)
        first = (self.key & _32_BITS) ^ mix(2 * self.layer + 1)
        second = (self.key >> 32) ^ mix(2 * self.layer + 2)
        # In place, because the mask of many models is bound by memory.
        bits = (position & _32_BITS) ^ first
        bits.bitwise_xor_(bits >> 16).mul_(_FIRST).bitwise_and_(_32_BITS).bitwise_xor_(second)
        bits.bitwise_xor_(bits >> 15).mul_(_SECOND).bitwise_and_(_32_BITS)
        keep = (bits >= (self.rate * 2.0**32).to(torch.int64)).view(shape)
        left = torch.where(self.rate < 1, 1 - self.rate, torch.ones_like(self.rate))
        return torch.where(keep, x / left, torch.zeros((), dtype=x.dtype, device=x.device))

    def extra_repr(self) -> str:
        return f"rate={float(self.rate):g}, layer={self.layer}"


def replace_dropout(module: nn.Module) -> int:
    """Puts a KeyedDropout in the place of every nn.Dropout (1d to 3d too) below `module`.

    They are numbered from 0 in the order of `modules`; one used at several places stays one.
    Returns how many there are.
    """
    new: dict[int, KeyedDropout] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children skips repeats
            if isinstance(child, (nn.Dropout, *_CHANNELWISE)):
                if id(child) not in new:
                    channels = not isinstance(child, nn.Dropout)
                    new[id(child)] = KeyedDropout(child.p, len(new), channels=channels)
                    new[id(child)].train(child.training)
                setattr(parent, name, new[id(child)])
    return len(new)
