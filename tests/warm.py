"""New Python processes that need not import torch and scikit-learn again, which takes 5 seconds.

`Popen` is `subprocess.Popen` for commands `[sys.executable, "-c", code, ...]` and `[sys.executable,
"-m", module, ...]`: a process of its own, with its own number, environment, folder and pipes, which
ends, and can be ended, like any other. It is a copy (os.fork) of a server that has imported what
`sweep` imports; all else it does anew. Not for what looks at memory or at what is imported.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SERVE = "from tests.warm import serve; serve({})"
PRELOADED = (
    "sweep.cli.run",
    "sweep.search.loop",
    "sweep.search.risk",
    "sweep.training.worker",
    "sweep.insight.note",
    "sklearn.model_selection",
    "sklearn.metrics",
)


class Popen(subprocess.Popen[Any]):
    """A copy of the server in the place of a new interpreter."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *more: Any) -> None:
        _, pass_fds, cwd, env, _, _, shell, *rest = more
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *last = rest
        new_session = last[5]
        interpreter, *command = map(str, args)
        assert interpreter == sys.executable and not (shell or preexec_fn), args
        streams = [
            given if given != -1 else number
            for number, given in enumerate((p2cread, c2pwrite, errwrite))
        ]
        numbers = [0, 1, 2, *pass_fds]
        job = {
            "command": command,
            "cwd": os.path.abspath(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "new_session": bool(new_session),
            "numbers": numbers,
        }
        try:
            self.pid = server().start(job, [*streams, *pass_fds])
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        self._child_created = True

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        if self.returncode is None:
            self.returncode = server().status(self.pid)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self._internal_poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return self.returncode


def run(
    command: list[str], *, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, with what is printed captured."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **(pipes | options)) as started:
        try:
            out, err = started.communicate(timeout=timeout)
        except BaseException:
            started.kill()
            raise
    return subprocess.CompletedProcess(command, started.returncode, out, err)


class _Server:
    """Our end of the server."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._connection = Connection(os.dup(self._control.fileno()))
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVE.format(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                start_new_session=True,
            )
        atexit.register(self.close)

    def start(self, job: dict[str, Any], descriptors: list[int]) -> int:
        with self._lock:
            self._connection.send_bytes(json.dumps(job).encode())
            socket.send_fds(self._control, [b"\0"], descriptors)
            return int(self._connection.recv_bytes())

    def status(self, child: int) -> int | None:
        """How it ended, as `subprocess` has it; None while it runs."""
        with self._lock:
            self._connection.send_bytes(str(child).encode())
            said: int | None = json.loads(self._connection.recv_bytes())
            return said

    def close(self) -> None:
        self._connection.close()
        self._control.close()
        self._process.wait()


@functools.cache
def server() -> _Server:
    """The server of this test process."""
    return _Server()


# In the server, and in its copies.


def serve(descriptor: int) -> None:
    """Imports, then copies itself as often as it is asked to, until the other end is closed."""
    for name in PRELOADED:
        __import__(name)
    control = socket.socket(fileno=descriptor)
    connection = Connection(os.dup(descriptor))
    while True:
        try:
            asked = json.loads(connection.recv_bytes())
        except EOFError:
            os._exit(0)
        if isinstance(asked, int):
            ended, status = os.waitpid(asked, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
            connection.send_bytes(json.dumps(code).encode())
            continue
        _, descriptors, *_ = socket.recv_fds(control, 1, 64)
        child = os.fork()
        if not child:
            control.close()
            connection.close()
            _become(asked, descriptors)
        for each in descriptors:
            os.close(each)
        connection.send_bytes(str(child).encode())


def _become(job: dict[str, Any], descriptors: list[int]) -> None:
    """Runs the job's command as a new interpreter would; never returns."""
    code = 1
    try:
        _settle(job, descriptors)
        code = _run(job["command"])
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            code = code or 120
        os._exit(code)


def _settle(job: dict[str, Any], descriptors: list[int]) -> None:
    """Session, files, folder, environment, signals and streams."""
    if job["new_session"]:
        os.setsid()
    # Out of the way of the numbers that they are to have.
    beyond = max(job["numbers"]) + 1
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, beyond) for each in descriptors]
    for each in descriptors:
        os.close(each)
    for number, each in zip(job["numbers"], moved, strict=True):
        os.dup2(each, number)
        os.close(each)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, buffering, closefd=False)
        for number, mode, buffering in ((0, "r", -1), (1, "w", -1), (2, "w", 1))
    )
    if os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(os.environ["PYTHONWARNINGS"])  # type: ignore[arg-type]
    given = [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [os.getcwd(), *given, *(p for p in sys.path if p and p not in given)]
    import torch

    threads = os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(int(threads) if threads else len(os.sched_getaffinity(0)))


def _run(command: list[str]) -> int:
    how, what, *arguments = command
    try:
        if how == "-c":
            sys.argv = ["-c", *arguments]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            assert how == "-m", command
            sys.argv = [what, *arguments]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 0
