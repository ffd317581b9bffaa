"""What training needs in memory, and what there is."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sweep.training.device import CPU

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MOMENTS = {"sgd": 1, "normalized_sgd": 1, "rmsprop": 2, "adam": 2, "adamw": 2, "fista": 6}
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
    gradient as it is, clipped and penalized, and the activations of a batch: backward makes as
    many numbers as it was kept. An estimate: of mlp, cnn, rnn, gru and lstm 0.5 to 1.5 times as
    much was measured.
    """
    copies = 2 * (1 + MOMENTS[optimizer]) + 3
    parameters = sum(p.numel() for p in module.parameters())
    passed = 2 * batch * activations(module, input_shape, dtype)
    return int((copies * parameters + passed) * dtype.itemsize)


def activations(module: nn.Module, input_shape: Sequence[int], dtype: torch.dtype) -> int:
    """Numbers that the forward pass of one row keeps for the backward pass, inputs included.

    Counted as torch keeps them: whatever the module is made of, a recurrence included.
    """
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        # What is kept stays alive here, so that no other tensor gets its place.
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda t: t):
        rows = _fed(module, input_shape, dtype)
    keep(rows)
    bytes_kept = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
    return int(bytes_kept // (len(rows) * dtype.itemsize))


def put_out(module: nn.Module, input_shape: Sequence[int], dtype: torch.dtype) -> int:
    """Numbers that the modules put out for one row, inputs included."""
    seen = int(np.prod(input_shape))

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal seen
        outputs = output if isinstance(output, tuple) else (output,)
        seen += sum(part.numel() // 2 for part in outputs if isinstance(part, Tensor))

    leaves = [part for part in module.modules() if not list(part.children())]
    hooks = [part.register_forward_hook(count) for part in leaves]
    try:
        with torch.no_grad():
            _fed(module, input_shape, dtype)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _fed(module: nn.Module, input_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Two rows of zeros, which the module was fed in evaluation mode."""
    rows = torch.zeros(2, *input_shape, dtype=dtype)
    was_training = module.training
    try:
        module.eval()(rows)
    except (Exception, SystemExit):
        # A user's module may refuse zeros; what it needs is then not counted.
        pass
    finally:
        module.train(was_training)
    return rows


def machine_bytes(device: torch.device = CPU) -> int:
    """All the memory of this machine, or of a device of it."""
    if device != CPU:
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: torch.device = CPU) -> int:
    """Memory that could be had without swapping, nor being stopped by a limit: the process's own
    (ulimit -v), or its container's. Of a device: what nobody has, or torch has and does not use.
    """
    if device != CPU:
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    free = _kilobytes("/proc/meminfo", "MemAvailable:")
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    taken = _kilobytes("/proc/self/status", "VmSize:")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource is not None else -1
    if taken is not None and limit >= 0:
        free = min(free, limit - taken)
    with contextlib.suppress(OSError, ValueError):
        # "max" where there is no limit.
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, most - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, free)


def _kilobytes(path: str, name: str) -> int | None:
    """A line's value in bytes; None where there is no such file or line."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python, in torch on the CPU, or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(said in text for said in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "not enough memory",
    "allocate memory",
    "bad_alloc",
    "can't start new thread",
    # CUDA's own, and its libraries' (CUBLAS_STATUS_ALLOC_FAILED).
    "out of memory",
    "alloc_failed",
)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MXFAST = -1, -3, 1
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Memory that a step frees the next one takes again: blocks below 32 MiB, 256 MiB in all.

    The C library gives it back to the system at once, and a tenth of eager training went into
    getting it anew, page by page. It also looks through all of its smallest blocks whenever a large
    one is freed, unless it keeps none of them apart. See mallopt(3).
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        adjust = ctypes.CDLL(None).mallopt
        adjust(M_MMAP_THRESHOLD, 32 << 20)
        adjust(M_TRIM_THRESHOLD, 256 << 20)
        adjust(M_MXFAST, 0)
