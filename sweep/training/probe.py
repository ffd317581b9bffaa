"""What a user's module does beyond mapping rows to outputs, found out on a few rows of the data.

A lane pads the last short batch and the rows that it is scored on, holds parameters and buffers
outside the module, and shares the module with all other lanes. A module that notices any of this
must not be padded, or not be a lane.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sweep.problem.models import rows_interact
from sweep.problem.plugins import describe
from sweep.problem.randomness import seeded
from sweep.training.memory import is_out_of_memory

ROWS, SHORT = 8, 5
"""Rows of a whole batch and of a short one."""


class Traits(NamedTuple):
    """`rows_interact`: what a row makes of itself, or of a buffer, depends on its batch.

    `unstackable`: why the module cannot share a program with others; None if nothing speaks
    against it.
    """

    rows_interact: bool
    unstackable: str | None = None


class _Call(NamedTuple):
    outputs: Tensor
    buffers: dict[str, Tensor]
    has_gradient: bool


def probe(module: nn.Module, x: Tensor) -> Traits:
    """The traits of a module in training mode; x (n, ...) are rows that it may be fed.

    A module that raises on these rows will do so in training as well, and is reported there.
    """
    known = rows_interact(module)
    if len(x) < ROWS:
        return Traits(known)
    whole, short = x[:ROWS], x[:SHORT]
    padded = torch.cat([short, short[:1].expand(ROWS - SHORT, *short.shape[1:])])
    with torch.random.fork_rng(devices=[]):
        try:
            of_whole, of_short, of_padded = (
                _plainly(module, rows) for rows in (whole, short, padded)
            )
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            return Traits(known)
        interact = known or not (
            _close(of_whole.outputs[:SHORT], of_short.outputs)
            and _all_close(of_short.buffers, of_padded.buffers)
        )
        try:
            return Traits(interact, _why_not(module, whole, of_whole))
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            return Traits(interact, describe(error))


def _why_not(module: nn.Module, x: Tensor, plain: _Call) -> str | None:
    if not plain.has_gradient:
        return "its outputs are cut off from its parameters"
    asked, again = copy.deepcopy(module).eval(), copy.deepcopy(module).eval()
    if not _close(asked(x)[:SHORT].detach(), again(x[:SHORT]).detach()):
        return "what it makes of a row depends on the rows beside it, not in training alone"
    shared = copy.deepcopy(module).train()
    first, second = _as_a_lane(shared, module, x), _as_a_lane(shared, module, x)
    if not _close(first.outputs, second.outputs):
        return "what it returns depends on something that it keeps outside its buffers"
    if not _all_close(plain.buffers, first.buffers):
        return "it replaces its buffers, where only changes in place can be followed"
    return None


def _plainly(module: nn.Module, x: Tensor) -> _Call:
    own = copy.deepcopy(module).train()
    with seeded(0):
        outputs = own(x)
    return _Call(outputs.detach(), dict(own.named_buffers()), outputs.requires_grad)


def _as_a_lane(shared: nn.Module, start: nn.Module, x: Tensor) -> _Call:
    buffers = {name: buffer.clone() for name, buffer in start.named_buffers()}
    with seeded(0):
        outputs = functional_call(shared, {**dict(start.named_parameters()), **buffers}, (x,))
    return _Call(outputs.detach(), buffers, outputs.requires_grad)


def _all_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(_close(a[name], b[name]) for name in a)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    size = float(b.abs().nan_to_num(0.0, 0.0, 0.0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0, atol=1e4 * torch.finfo(a.dtype).eps * size, equal_nan=True)
