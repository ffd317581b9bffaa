"""What training needs in memory, and what there is."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

MOMENTS = {"sgd": 1, "rmsprop": 2, "adam": 2, "adamw": 2, "fista": 6}
"""Tensors the size of the parameters that an optimizer keeps."""
SHARE = 0.5
"""Of the memory that is free, the part that lanes may take."""


def slot_bytes(
    module: nn.Module,
    input_shape: Sequence[int],
    dtype: torch.dtype,
    optimizer: str,
    batch: int,
) -> int:
    """Of one lane in training: weights and optimizer state (twice: an update makes new ones), the
    gradient, and the activations of a batch, forward and backward. An estimate.
    """
    copies = 2 * (1 + MOMENTS[optimizer]) + 1
    parameters = sum(p.numel() for p in module.parameters())
    passed = 2 * batch * activations(module, input_shape, dtype)
    return (copies * parameters + passed) * dtype.itemsize


def activations(module: nn.Module, input_shape: Sequence[int], dtype: torch.dtype) -> int:
    """Numbers that the modules put out for one row, inputs included."""
    seen = int(np.prod(input_shape))

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal seen
        outputs = output if isinstance(output, tuple) else (output,)
        seen += sum(part.numel() // 2 for part in outputs if isinstance(part, Tensor))

    leaves = [part for part in module.modules() if not list(part.children())]
    hooks = [part.register_forward_hook(count) for part in leaves]
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(2, *input_shape, dtype=dtype))
    except (Exception, SystemExit):
        # A user's module may refuse zeros; what it needs is then not counted.
        pass
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return seen


def machine_bytes() -> int:
    """All the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes() -> int:
    """Memory that could be had without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
