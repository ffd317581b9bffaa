"""Compiles a program's step in a process beside training, and keeps what was compiled.

A traced step that was compiled before, by any run on this machine, is there at once. Else training
goes on eagerly, and the compiled step takes over when it is done, if the training left is worth
it: compiling takes 15 to 30 seconds, a compiled step a third of an eager one or less. Without a
C++ compiler, or where compiling fails, training stays eager.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from sweep.training.batches import FoldTable
from sweep.training.lanes_library import CompiledStep
from sweep.training.lanes_step import LaneStep, State, StepInputs
from sweep.training.lanes_trace import fingerprint, tensors, trace

WORTH_SECONDS = 15.0
"""Eager training left that makes compiling worth its while."""
TRACE_WORTH_SECONDS = 2.0
"""Eager training left that makes it worth while to look whether the step was compiled before."""
KEPT = 100
"""Compiled steps on disk, the least recently used of which go first."""


class Compilation:
    """A step on its way to be compiled: `result` once it is there, `error` if it never will be."""

    def __init__(
        self,
        step: LaneStep,
        state: State,
        inputs: StepInputs,
        table: FoldTable,
    ) -> None:
        self.result: CompiledStep | None = None
        self.error: str | None = None
        self._table = table
        self._process: subprocess.Popen[bytes] | None = None
        self._lanes, self._rows = tensors((state, inputs)), tensors(table)
        try:
            self.graph = trace(step, state, inputs, table)
            self._directory = cache_directory()
        except Exception as error:
            self.error = _in_a_line(error)
            return
        about = (torch.__version__, torch.backends.cpu.get_cpu_capability())
        key = fingerprint(self.graph, [*self._lanes, *self._rows], about)
        self.library = self._directory / f"{key}.so"
        self._load()

    def start(self) -> None:
        """Starts compiling, unless that has been done or is under way."""
        if self.result is not None or self.error is not None or self._process is not None:
            return
        with tempfile.NamedTemporaryFile(
            dir=self._directory, suffix=".job", delete=False
        ) as source:
            self._source = Path(source.name)
            lanes = [((8, *t.shape[1:]), t.dtype) for t in self._lanes]
            job = {
                "graph": self.graph,
                "lanes": lanes,
                "rows": [(tuple(t.shape), t.dtype) for t in self._rows],
                "library": str(self.library),
            }
            pickle.dump(job, source)
        self._log = self._source.with_suffix(".log")
        # -P: beside the script lie modules whose names others also use.
        script = str(Path(__file__).with_name("compile_program.py"))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", script, str(self._source)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(self._directory / "inductor")},
            )
        atexit.register(self.close)

    def poll(self) -> None:
        """Takes over what has been compiled meanwhile."""
        if self._process is None or self._process.poll() is None:
            return
        code, self._process = self._process.returncode, None
        lines = self._log.read_text(errors="replace").strip().splitlines()
        self._clean_up()
        if code == 0:
            self._load()
        if self.result is None and self.error is None:
            said = next((line for line in reversed(lines) if line and line[0] != " "), "")
            self.error = said[:200] or f"the compiler ended with code {code}"

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()
        self.poll()

    def close(self) -> None:
        """Ends a compiler that is still at work."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._clean_up()

    def _clean_up(self) -> None:
        atexit.unregister(self.close)
        for left in self._directory.glob(f"{self._source.stem}.*"):
            left.unlink(missing_ok=True)

    def _load(self) -> None:
        if not self.library.exists():
            return
        try:
            self.result = CompiledStep(self.library, self._table, torch.get_num_threads())
        except Exception:
            # Written by another build of torch, or cut short by a full disk.
            self.library.unlink(missing_ok=True)
            return
        with contextlib.suppress(OSError):
            os.utime(self.library)
            newest = sorted(self._directory.glob("*.so"), key=lambda p: -p.stat().st_mtime)
            for old in newest[KEPT:]:
                old.unlink(missing_ok=True)


def cache_directory() -> Path:
    """Where compiled steps lie: code that will be run, so nobody else may write there."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(home) / "sweep" / "steps"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = path.stat()
        safe = about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if safe and os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="sweep-steps-"))


def _in_a_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
