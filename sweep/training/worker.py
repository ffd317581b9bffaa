"""What runs in the processes of `processes`: a nursery, and the workers that it is copied to.

The nursery imports torch and receives the experiment once, and never trains. Each worker is a
copy of it (os.fork), so that it starts at once and shares the memory of the data. Both end when
the other end of their connection does, whatever they are doing.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import threading
import time
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch

from sweep.errors import SweepError
from sweep.problem.plugins import PREFIX, load_object
from sweep.spec import Choices
from sweep.training.experiment import Experiment
from sweep.training.member import Done, Event, Member, Outcome
from sweep.training.reference import ReferenceEngine, error_failure

Name = tuple[int, int]
SECONDS_TO_END = 1.0
"""A process that closed its connection has so long to end by itself."""


def nurse(descriptor: int) -> None:
    """Receives an experiment, then copies itself as often as it is asked to."""
    # Ctrl-C and SIGTERM are for the process that is in charge; its end is the end of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A thread pool would not survive the copying.
    torch.set_num_threads(1)
    control = socket.socket(fileno=descriptor)
    connection = Connection(os.dup(descriptor))
    with contextlib.suppress(EOFError, OSError):
        experiment = receive(control, connection)
        # What is never looked at by the collector is not copied on its account.
        gc.freeze()
        connection.send("ready")
        while True:
            asked = connection.recv()
            if asked == "copy":
                theirs = socket.recv_fds(control, 1, 1)[1][0]
                child = os.fork()
                if not child:
                    control.close()
                    connection.close()
                    _work(Connection(theirs), experiment)
                os.close(theirs)
                connection.send(child)
            else:
                connection.send(_status(asked))


def receive(control: socket.socket, connection: Connection) -> Experiment:
    """What `processes.send` sends."""
    sizes = connection.recv()
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            n = control.recv_into(view)
            if not n:
                raise EOFError
            view = view[n:]
    experiment: Experiment = pickle.loads(connection.recv_bytes(), buffers=buffers)
    return experiment


def _status(child: int) -> int:
    """How a copy ended, in the words of `os.waitpid`."""
    until = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _work(connection: Connection, experiment: Experiment) -> None:
    """Trains what it is told to, one member at a time; never returns.

    Says first whether it can ("ready", or why not), then (ticket,) before it trains another
    member than the last time, and (ticket, step, event) for every event; the ticket is what the
    member was added with.
    """
    commands: SimpleQueue[Any] = SimpleQueue()
    given: dict[Name, tuple[int, Member]] = {}
    threading.Thread(target=_listen, args=(connection, commands), daemon=True).start()
    try:
        connection.send(_why_not(experiment) or "ready")
        engine = ReferenceEngine(experiment)
        said = -1
        while True:
            while not engine.pending or not commands.empty():
                verb, *arguments = commands.get()
                if verb == "add":
                    ticket, member = arguments
                    given[member.name] = ticket, member
                    engine.add(member)
                else:
                    getattr(engine, verb)(*arguments)
            ticket, member = given[engine.turn]
            if ticket != said:
                connection.send((ticket,))
                said = ticket
            step, event = _train(engine, member)
            if event is not None:
                connection.send((ticket, step, event))
    except OSError:
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def _train(engine: ReferenceEngine, member: Member) -> tuple[int, Event | None]:
    try:
        return engine.train()
    except MemoryError as error:
        engine.remove(member.name)
        return 0, Done(member, Outcome(failure=error_failure(error, member, 0, 0)))


def _listen(connection: Connection, commands: SimpleQueue[Any]) -> None:
    """Passes commands on; ends the process when there is nobody left to give them."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            commands.put(connection.recv())
    os._exit(0)


def _why_not(experiment: Experiment) -> str | None:
    """Why the study's own code cannot be had here, as where it was typed into a notebook."""
    spec = experiment.spec
    listed: Any = spec.regularizer
    names = [spec.model.kind, *(listed.choices if isinstance(listed, Choices) else [listed])]
    try:
        for name in names:
            if name.startswith(PREFIX):
                load_object(name, experiment.directory)
    except SweepError as error:
        return str(error)
    return None
