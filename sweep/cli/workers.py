"""`sweep run --workers N`: more processes like this one, on the same study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO

PATIENCE = 15.0
"""Seconds that a child has to give its trials back before it is killed."""


def share_cores(workers: int) -> None:
    """Limits this process's threads, and its children's, to its share; before torch is imported."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, cores // workers)))


def stop_with_parent() -> None:
    """Asks this process to stop when its standard input ends, as it does when the parent dies."""

    def wait() -> None:
        # Not sys.stdin, whose lock this thread would still hold when the interpreter ends.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class Workers:
    """The other processes of a run; they end when all trials are done, or with this one."""

    def __init__(self, arguments: Sequence[str], url: str, count: int) -> None:
        """`arguments` of `sweep run`, to which the study's name is added; nothing starts yet."""
        self.arguments, self.url, self.count = list(arguments), url, count
        self._children: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def start(self, study: str) -> None:
        """Starts them on the study of that name, once."""
        if self._children or self.count < 1:
            return
        command = [sys.executable, "-m", "sweep", "run", *self.arguments]
        command += ["--set", f"study={json.dumps(study)}", "--quiet", "--stop-with-parent"]
        for _ in range(self.count):
            said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                # Not as an argument, which everybody on the machine could read.
                env={**os.environ, "SWEEP_STORAGE": self.url},
                stdout=subprocess.DEVNULL,
                stderr=said,
                # Ctrl-C reaches this process alone; it then stops the others.
                start_new_session=True,
            )
            self._children.append((child, said))

    def stop(self) -> list[str]:
        """Stops those that still run; returns what those that failed have said."""
        problems = []
        for child, _ in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child, said in self._children:
            try:
                code = child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                code = child.wait()
            said.seek(0)
            words = said.read().decode(errors="replace").strip()
            said.close()
            if code not in (0, 3, 130, 143, -signal.SIGTERM):
                last = words.splitlines()[-1] if words else "nothing was said"
                problems.append(f"A worker ended with exit code {code}: {last}")
        self._children = []
        return problems
