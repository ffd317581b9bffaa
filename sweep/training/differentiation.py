"""The gradient of a function of tensors, inside of torch.func.vmap.

torch.func.grad_and_value is made to be differentiated again: it builds a graph of the backward
pass as well, and imports torch's compiler (seconds) to tell it to stand aside. A step needs
neither. This is the same transformation without them, by the same parts of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.eager_transforms import enable_inplace_requires_grad, grad_increment_nesting
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten


def value_and_gradient(
    function: Callable[[Any], tuple[Tensor, Any]], at: Any
) -> tuple[Tensor, Any, Any]:
    """(value, more, gradient) of a function that returns (value, a scalar; more, a tree).

    `at` and the gradient are trees of tensors. The gradient is 0 where the value does not depend on
    a tensor. No result can be differentiated again.
    """
    given, structure = tree_flatten(at)
    with grad_increment_nesting() as level, torch.enable_grad():
        wrapped = [functorch._wrap_for_grad(t, level) for t in given]
        with enable_inplace_requires_grad(True):
            for t in wrapped:
                t.requires_grad_()
        value, more = function(tree_unflatten(wrapped, structure))
        gradient = _gradient(value, wrapped)

        def unwrap(t: Tensor) -> Tensor:
            inner: Tensor = functorch._unwrap_for_grad(t, level)
            return inner

        value, more = tree_map_only(Tensor, unwrap, (value, more))
        return value, more, tree_unflatten([unwrap(t) for t in gradient], structure)


def _gradient(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]
