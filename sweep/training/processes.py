"""Processes that train members: started, told what to train, listened to, replaced, ended.

They are started as new interpreters, not through `multiprocessing`: that would import the
caller's script once more in each, and ask it for `if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from sweep.spec import StudySpec
from sweep.training.experiment import Experiment
from sweep.training.worker import Name

_BEGIN = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
    "from sweep.training.worker import nurse; nurse(int(sys.argv[1]))"
)
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


@dataclass(eq=False)
class Worker:
    """A process in training. `held`: the members that it was given, and that have not ended, by
    their tickets; `trains`: the ticket of the last one that it said it trains.
    """

    connection: Connection
    process: int
    held: dict[int, Name] = field(default_factory=dict)
    trains: int | None = None

    def tell(self, verb: str, *arguments: Any) -> None:
        """A command; one that died is found out by listening to it."""
        with contextlib.suppress(OSError):
            self.connection.send((verb, *arguments))


def possible() -> bool:
    """Whether this system can copy processes, and this interpreter be started anew."""
    return hasattr(os, "fork") and hasattr(socket, "send_fds") and bool(sys.executable)


class Processes:
    """Starts `count` workers for an experiment, in the background."""

    def __init__(self, experiment: Experiment, count: int) -> None:
        self.workers: list[Worker] = []
        self.failed: str | None = None
        self._control, theirs = socket.socketpair()
        self._connection = Connection(os.dup(self._control.fileno()))
        with theirs:
            self._nursery = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                # Ctrl-C is not for them; and one signal to the group ends them all.
                start_new_session=True,
            )
        self._starting = threading.Thread(target=self._start, args=(experiment, count), daemon=True)
        self._starting.start()
        # Also when nobody calls it: at the end of the interpreter, or forgotten by an engine.
        self.close = weakref.finalize(
            self, _end, self._nursery, self._starting, self._control, self._connection
        )

    def ready(self, timeout: float | None = 0.0) -> bool:
        """Whether `workers` are there, or `failed` says why not."""
        self._starting.join(timeout)
        return not self._starting.is_alive()

    def replace(self, worker: Worker) -> str:
        """Puts another one in the place of a worker that died; says in words how that ended.

        Raises OSError or EOFError if there can be no other.
        """
        self.workers.remove(worker)
        worker.connection.close()
        self._connection.send(worker.process)
        how = _in_words(self._connection.recv())
        self.workers.append(self._copy())
        return how

    def _start(self, experiment: Experiment, count: int) -> None:
        try:
            send(experiment, self._control, self._connection)
            self._connection.recv()
            self.workers = [self._copy() for _ in range(count)]
            said = [worker.connection.recv() for worker in self.workers]
            self.failed = next((text for text in said if text != "ready"), None)
        except (OSError, EOFError, pickle.PicklingError, TypeError, AttributeError) as error:
            self.failed = f"{type(error).__name__}: {error}"

    def _copy(self) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            self._connection.send("copy")
            socket.send_fds(self._control, [b"\0"], [theirs.fileno()])
        connection = Connection(ours.detach())
        process: int = self._connection.recv()
        return Worker(connection, process)


def send(experiment: Experiment, control: socket.socket, connection: Connection) -> None:
    """The experiment without what it has worked out for itself; large arrays are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    plain = Experiment(experiment.problem, experiment.spec, experiment.directory)
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(plain)
    views = [buffer.raw() for buffer in buffers]
    connection.send([view.nbytes for view in views])
    for view in views:
        control.sendall(view)
    connection.send_bytes(stream.getbuffer())


class _Pickler(pickle.Pickler):
    """Tensors as arrays, which can be sent from where they are; the study file as its values,
    since the classes of its generic models have no place to be imported from.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.detach().numpy(),)
        if isinstance(value, StudySpec):
            return StudySpec.model_validate, (value.model_dump(mode="json", by_alias=True),)
        return NotImplemented


def _in_words(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was ended by signal {number} ({signal.Signals(number).name})"
    return f"ended by itself, with exit code {os.WEXITSTATUS(status)}"


def _end(
    nursery: subprocess.Popen[bytes],
    starting: threading.Thread,
    control: socket.socket,
    connection: Connection,
) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(nursery.pid, signal.SIGKILL)
    nursery.wait()
    starting.join(1.0)
    control.close()
    connection.close()
