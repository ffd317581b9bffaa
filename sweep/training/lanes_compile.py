"""Compiles programs of lanes in a process beside training, and keeps what was compiled.

What was compiled before, by any run on this machine, is there at once. Else training goes on
eagerly, and what is compiled takes over when it is done, if the training left is worth it:
compiling takes 15 to 30 seconds for a small network and a minute or two for a recurrent one, a
compiled step half of an eager one. Without a C++ compiler, or where compiling fails, training
stays eager.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from sweep.training.lanes_cache import (
    FINISH,
    cache_directory,
    clean_up,
    lasts,
    processor,
    tidy,
    unlock,
    write,
)
from sweep.training.lanes_library import CompiledProgram, load_native
from sweep.training.lanes_operators import NATIVE_SOURCES, use_native
from sweep.training.lanes_trace import Traced, fingerprint

WORTH_SECONDS, SCORING_WORTH_SECONDS = 15.0, 5.0
"""Training left, in seconds, that makes it worth while to compile the step, and then the scoring:
which this run gains little from, and every later one has."""
WORTH_A_NODE = 0.025
"""The same of a large graph, for each of its nodes. Compiling takes 0.04 s a node, of one core, and
training is slower meanwhile: with less left than this it comes to no end."""
TRACE_WORTH_SECONDS = 6.0
"""Eager training left that makes it worth while to look by tracing, which takes 3 to 10 seconds,
whether another study's step is this one."""
POLL_SECONDS = 0.1
COMPILER = Path(__file__).with_name("compile_program.py")
"""What it does to a graph is part of what a library is."""
_BEGIN = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[3]); "
    "from sweep.training.compile_program import main; main(sys.argv[1], int(sys.argv[2]))"
)


class Compilation:
    """Programs by name on their way to be compiled: `ready` once they are there, `errors` if they
    never will be.

    `sources` trace them. `brief` says the same for the same programs, in any run of this code:
    what was compiled for it before is there without tracing, which takes a second or two.
    """

    def __init__(self, sources: Mapping[str, Callable[[], Traced]], brief: str | None) -> None:
        self.ready: dict[str, CompiledProgram] = {}
        self.errors: dict[str, str] = {}
        self.traced: dict[str, Traced] | None = None
        self.libraries: dict[str, Path] = {}
        self._sources = sources
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._directory = cache_directory()
        except OSError as error:
            self._fail(error)
            return
        machine = (torch.__version__, torch.backends.cpu.get_cpu_capability(), processor())
        code = [source.read_text() for source in (*NATIVE_SOURCES, COMPILER)]
        self._about = (*code, *machine)
        self.native = self._directory / f"native-{_digest(self._about)}.so"
        self._native: ctypes.CDLL | None = None
        self._index: Path | None = None
        if brief is not None:
            self._index = self._directory / f"{_digest((brief, self._about))}.json"
            self._look_up(self._index)
        self._load()

    @property
    def is_complete(self) -> bool:
        """Whether nothing more can come."""
        return len(self.ready) + len(self.errors) == len(self._sources)

    def worth(self) -> float:
        """Seconds of training left that make it worth while to compile the next program."""
        missing = [
            traced
            for name, traced in (self.traced or {}).items()
            if name not in self.ready and name not in self.errors
        ]
        nodes = len(missing[0].graph.graph.nodes) if missing else 0
        return max(SCORING_WORTH_SECONDS if self.ready else WORTH_SECONDS, WORTH_A_NODE * nodes)

    @property
    def is_at_work(self) -> bool:
        """Whether a compiler takes up a core."""
        return self._process is not None

    def trace(self) -> None:
        """Finds out which programs these are, and takes over those that were compiled before."""
        if self.traced is not None or self.is_complete:
            return
        self.traced = {}
        for name, source in self._sources.items():
            try:
                traced = source()
            except Exception as error:
                self.errors[name] = in_a_line(error)
                continue
            self.traced[name] = traced
            self.libraries[name] = self._directory / f"{fingerprint(traced, self._about)}.so"
        if self._index is not None and not self.errors:
            found = {name: library.name for name, library in self.libraries.items()}
            write(self._index, json.dumps(found))
        self._load()

    def start(self) -> None:
        """Starts compiling what is not there, unless that is under way."""
        self.trace()
        if self._process is not None or self.is_complete:
            return
        try:
            self._start()
        except OSError as error:
            # The disk is full, or somebody has removed the cache.
            self._fail(error)

    def _start(self) -> None:
        assert self.traced is not None
        jobs = [
            {
                **traced._asdict(),
                "library": str(self.libraries[name]),
                "native": str(self.native),
            }
            for name, traced in self.traced.items()
            if name not in self.ready
        ]
        with tempfile.NamedTemporaryFile(
            dir=self._directory, suffix=".job", delete=False
        ) as source:
            self._source = Path(source.name)
            pickle.dump(jobs, source)
        self._log = self._source.with_suffix(".log")
        arguments = [str(self._source), str(os.getpid()), json.dumps(sys.path)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                # Its own, so that the C++ compiler it has started can be ended with it.
                process_group=0,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(self._directory / "inductor")},
            )
        atexit.register(self.close)

    def _fail(self, error: OSError) -> None:
        """Nothing that is not there will be."""
        for name in self._sources:
            if name not in self.ready:
                self.errors.setdefault(name, in_a_line(error))

    def poll(self) -> None:
        """Takes over what has been compiled meanwhile."""
        if self._process is None:
            return
        code = self._process.poll()
        self._load()
        if code is None:
            return
        self._process = None
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
        self._clean_up()
        said = next((line for line in reversed(lines) if line and line[0] != " "), "")
        if code < 0:
            # Its last words are then a warning of something else.
            said = f"the compiler was ended by {signal.Signals(-code).name}"
        for name in self.libraries:
            if name not in self.ready:
                self.errors[name] = said[:200] or f"the compiler ended with code {code}"

    def wait(self, name: str) -> None:
        """Until this program is there, or never will be."""
        while self._process is not None and name not in self.ready:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_SECONDS)
            self.poll()

    def close(self, finish: bool = False) -> None:
        """Ends a compiler that is still at work; with `finish` it may come to its end, though this
        process may not be there any more: the next run begins with what it makes.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            if finish and lasts(self._directory):
                Path(f"{self._source}{FINISH}").touch()
                atexit.unregister(self.close)
                # Nobody waits for it any more, and that is no mistake to be warned of.
                self._process.returncode = 0
                self._process = None
                return
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._clean_up()

    def _clean_up(self) -> None:
        atexit.unregister(self.close)
        clean_up(str(self._source))
        for library in self.libraries.values():
            unlock(str(library))

    def _look_up(self, index: Path) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = json.loads(index.read_text())
            if set(found) == set(self._sources):
                self.libraries = {n: self._directory / Path(file).name for n, file in found.items()}
                os.utime(index)

    def _load(self) -> None:
        if self._native is None:
            self._native = self._load_native()
        for name, library in self.libraries.items():
            if name in self.ready or name in self.errors or not library.exists():
                continue
            try:
                self.ready[name] = CompiledProgram(library, self._native, torch.get_num_threads())
            except Exception:
                # Written by another build of torch, or cut short when the power failed.
                library.unlink(missing_ok=True)
                continue
            with contextlib.suppress(OSError):
                os.utime(library)
                tidy(self._directory)

    def _load_native(self) -> ctypes.CDLL | None:
        if not self.native.exists():
            return None
        try:
            native = load_native(self.native)
        except (OSError, AttributeError):
            # As below: it is made anew with the next program.
            self.native.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(self.native)
        use_native(native)
        return native


def _digest(about: object) -> str:
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]


def in_a_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
