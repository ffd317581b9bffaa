"""A compiled program: a shared library with AOTInductor's C interface.

It is called through that interface (torch/csrc/inductor/aoti_runtime/interface.h) by ctypes,
because torch's own loaders hold Python's lock while a program computes: here as many threads
compute as there are cores, and the sampler and the database go on meanwhile.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sweep.training.lanes_operators import handles_of

Pointer, Count = ctypes.c_void_p, ctypes.c_int64


class Turns:
    """Which lanes, in so many blocks, and which of a block's steps, in so many parts, were taken by
    one of the threads that share them."""

    def __init__(self, n_blocks: int, n_parts: int) -> None:
        self.n_blocks, self.n_parts = n_blocks, n_parts
        self.counts = (ctypes.c_int64 * (1 + n_blocks))()
        self._lock = threading.Lock()

    def next_block(self) -> int | None:
        """A block with all of its steps; None when there is none left."""
        with self._lock:
            block = self.counts[0]
            self.counts[0] = block + 1
        return block if block < self.n_blocks else None


class CompiledProgram:
    """A program compiled for any number of lanes from two on. It changes the lanes in place.

    `native`: as `load_native` has it, None where it was not made: then the program does without.
    Raises OSError or AttributeError where the file is no such library, or needs what is native.
    """

    def __init__(self, library: Path, native: ctypes.CDLL | None, threads: int) -> None:
        self._run_steps: Any = None if native is None else native.sweep_run_steps
        self._holds_own = b"\0aoti_sweep_" in library.read_bytes()
        if self._holds_own and native is None:
            raise OSError(f"{library} needs what is native")
        code = _loaded(library, ctypes.DEFAULT_MODE)
        create = code.AOTInductorModelContainerCreateWithDevice
        create.argtypes = [ctypes.POINTER(Pointer), ctypes.c_size_t, ctypes.c_char_p, Pointer]
        self._run = code.AOTInductorModelContainerRun
        self._run.argtypes = [
            Pointer,
            ctypes.POINTER(Pointer),
            ctypes.c_size_t,
            ctypes.POINTER(Pointer),
            ctypes.c_size_t,
            Pointer,
            Pointer,
        ]
        self._delete = code.aoti_torch_delete_tensor_object
        self._delete.argtypes = [Pointer]
        # Never deleted: a library that has run OpenMP code or holds static tensors is best kept.
        self._container = Pointer()
        if create(ctypes.byref(self._container), threads, b"cpu", None):
            raise OSError(f"{library} cannot be used")

    def steps(
        self,
        state: Sequence[Tensor],
        inputs: Sequence[Tensor],
        shared: Sequence[Tensor],
        turns: Turns | None = None,
    ) -> None:
        """Runs once for each of the `inputs`' parts along their first axis, one after the other.
        Threads that call it with the same `turns` share the lanes.

        Without a return to Python: threads that compute would wait there for each other, and for
        whatever else it does.
        """
        n_steps, lanes = len(inputs[0]) if inputs else 1, len(state[0])
        turns = turns or Turns(1, 1)
        if self._run_steps is None:
            while (block := turns.next_block()) is not None:
                begin, end = (lanes * at // turns.n_blocks for at in (block, block + 1))
                for step in range(n_steps):
                    given = [*(t[begin:end] for t in state), *(t[step, begin:end] for t in inputs)]
                    self(given, shared)
            return
        given = [*state, *inputs, *shared]
        handles = handles_of(given)
        stepwise = (ctypes.c_bool * len(given))()
        stepwise[len(state) : len(state) + len(inputs)] = [True] * len(inputs)
        counts = len(given), len(state), turns.counts, turns.n_blocks, min(turns.n_parts, n_steps)
        run = ctypes.cast(self._run, Pointer)
        failed = self._run_steps(
            run, self._container, n_steps, lanes, handles, stepwise, *counts, self._holds_own
        )
        for handle in handles:
            self._delete(handle)
        if failed:
            raise RuntimeError("the compiled program failed")

    def __call__(self, lanes: Sequence[Tensor], shared: Sequence[Tensor]) -> None:
        """Runs once."""
        if self._run_steps is not None:
            self.steps(lanes, [], shared)
            return
        given = [*lanes, *shared]
        handles = handles_of(given)
        returned = (Pointer * 1)()
        # The library takes over the handles it is given, and leaves the one it returns.
        failed = self._run(self._container, handles, len(given), returned, 1, None, None)
        if failed:
            raise RuntimeError("the compiled program failed")
        self._delete(returned[0])


def load_native(library: Path) -> ctypes.CDLL:
    """The library of NATIVE_SOURCES, where compiled programs find what they lack.

    Raises OSError or AttributeError where the file is no such library.
    """
    native = _loaded(library, ctypes.RTLD_GLOBAL)
    native.sweep_run_steps.argtypes = [
        *(Pointer, Pointer, Count, Count, Pointer, Pointer, Count, Count, Pointer, Count, Count),
        ctypes.c_bool,
    ]
    return native


def _loaded(library: Path, mode: int) -> ctypes.CDLL:
    if not _is_whole(library):
        raise OSError(f"{library} is cut short")
    return ctypes.CDLL(str(library), mode)


def _is_whole(library: Path) -> bool:
    """Whether an ELF file is as long as it says: the system ends a process that loads a part of
    one. A file ends with its section headers: where they begin is in bytes 40 to 47, how large
    and how many they are in bytes 58 to 61.
    """
    with library.open("rb") as file:
        header = file.read(64)
    if header[:4] != b"\x7fELF":
        # On some systems libraries are of another kind.
        return True
    if len(header) < 64:
        return False
    (begin,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    end: int = begin + size * count
    return library.stat().st_size >= end
