"""A device that is not there: tensors that say they are elsewhere, hold their numbers on the CPU,
and refuse what a GPU refuses.

Everything is computed by the CPU's own kernels, so results are those of the CPU to the last bit.
torch's `lazy` is the one device type that a build without it can differentiate on: nothing of it
is used but the name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sweep.training.threads import Workers

PRETEND = torch.device("lazy")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""They take indices of the CPU on a GPU as well, and wait until these are there."""
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}


class Elsewhere(Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, own: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            device=PRETEND,
        )

    def __init__(self, own: Tensor) -> None:
        self.own = own

    def __repr__(self) -> str:
        return f"Elsewhere({self.own})"

    def tolist(self) -> Any:
        WAITS.append("tolist")
        return self.own.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy: use .cpu() first")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _call(function, args, kwargs or {})


WAITS: list[str] = []
"""What made the CPU wait for the device, or the device for the CPU: no captured graph may."""


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """The device is there."""
    WAITS.clear()
    # Lanes are scored by a thread of their own.
    with _Device(), patch.object(Workers, "begin", lambda workers: _Device().__enter__()):
        yield PRETEND


class _Device(TorchDispatchMode):
    """Sees to it that what is made on the device, or moved to it, is. A mode is a thread's own."""

    def __enter__(self) -> _Device:
        # As FakeTensorMode does: torch.tensor(..., device=) begins on the CPU, then moves.
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        torch._C._set_only_lift_cpu_tensors(self._before)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _call(function, args, kwargs or {})


def _call(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [leaf for leaf in given if not isinstance(leaf, Elsewhere)]
    asked = kwargs.get("device")
    to = None if asked is None else torch.device(asked).type == PRETEND.type
    if len(here) == len(given) and not to:
        return function(*args, **kwargs)
    if function in READS or (given and to is not None and to == bool(here)):
        WAITS.append(str(function))
    elif function in MOVES:
        WAITS.extend([str(function)] * bool(here))
    elif function in INDEXED and isinstance(args[0], Elsewhere):
        _check_index(function, *args)
    elif given and here and not _are_numbers(function, here):
        raise RuntimeError(f"{function}: tensors of the CPU beside some of the device")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*tree_map(_own, args), **tree_map(_own, kwargs))
    if to is False:
        return result
    known = {id(_own(leaf)): leaf for leaf in given}

    def there(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)

    return tree_map(there, result)


def _are_numbers(function: Any, here: list[Tensor]) -> bool:
    """A GPU takes a number of the CPU where it goes entry by entry; `where` moves it first."""
    by_entry = torch.Tag.pointwise in function.tags and function is not aten.where.self
    return by_entry and all(t.ndim == 0 for t in here)


def _check_index(function: Any, _: Any, indices: Any, *values: Any) -> None:
    """Indices of the CPU are taken, and a mask has to be counted: both wait."""
    if any(isinstance(t, Tensor) and not isinstance(t, Elsewhere) for t in values):
        raise RuntimeError(f"{function}: values of the CPU beside some of the device")
    for index in indices:
        if index is not None and (index.dtype == torch.bool or not isinstance(index, Elsewhere)):
            WAITS.append(str(function))


def _own(leaf: Any) -> Any:
    return leaf.own if isinstance(leaf, Elsewhere) else leaf
