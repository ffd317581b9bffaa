"""Optuna's own dashboard on a study database."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection
from socketserver import ThreadingMixIn
from types import FrameType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from sweep.errors import RequestError, StorageError
from sweep.service.guard import guarded
from sweep.store.storage import Store

WAIT_SECONDS = 60.0
"""How long a database that is still starting is waited for."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve_dashboard(
    url: str,
    host: str,
    port: int,
    say: Callable[[str], None],
    *,
    allow_edits: bool = False,
    more_hosts: Collection[str] = (),
) -> int:
    """Serves the dashboard at http://host:port until SIGINT or SIGTERM, whose number it returns.

    It only reads, unless `allow_edits`, and answers for the hosts that `guarded` allows.
    A Postgres that is not up yet is waited for, a database that is not there is made. Raises
    RequestError when the address cannot be listened on, StorageError when there is no database.
    """
    store = open_patiently(url, say)
    try:
        application = guarded(
            _application(store), host, allow_edits=allow_edits, more_hosts=more_hosts
        )
        server = _listen(host, port, application)
    except BaseException:
        store.close()
        raise
    try:
        return _serve_until_signal(
            server, lambda: _announce(host, server.server_port, allow_edits, say)
        )
    finally:
        server.server_close()
        store.close()


def _announce(host: str, port: int, allow_edits: bool, say: Callable[[str], None]) -> None:
    if not is_local(host):
        can = "change, rename and delete studies" if allow_edits else "read every study"
        say(
            f"Warning: the dashboard has no access control, and {host} may be reached by others: "
            f"whoever reaches it can {can}."
        )
    shown = f"[{host}]" if ":" in host else host
    kind = "with edits allowed" if allow_edits else "read-only"
    say(f"Optuna dashboard, {kind}, on http://{shown}:{port}/ (Ctrl-C to stop)")


def open_patiently(url: str, say: Callable[[str], None], seconds: float = WAIT_SECONDS) -> Store:
    """The store at `url`, made if needed; tries again for `seconds` while it cannot be reached."""
    until = time.monotonic() + seconds
    told = False
    while True:
        try:
            return Store.open(url, create=True)
        except StorageError as error:
            if "cannot be reached" not in str(error) or time.monotonic() > until:
                raise
            if not told:
                say(f"Waiting for the database. {error}")
                told = True
            time.sleep(1.0)


def is_local(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _application(store: Store) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks some of its own parts experimental
        from optuna_dashboard import wsgi

        return wsgi(store.optuna_storage())


def _listen(host: str, port: int, application: Any) -> WSGIServer:
    kind = _ServerV6 if ":" in host else _Server
    try:
        server = kind((host, port), _QuietHandler)
    except socket.gaierror:
        raise RequestError(f"No address {host!r} on this machine. Give --host 127.0.0.1.") from None
    except OverflowError:
        raise RequestError(f"No port {port}; give one from 1 to 65535.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RequestError(
                f"Port {port} of {host} is in use. Give another: --port {port + 1}"
            ) from None
        raise RequestError(f"Cannot listen on {host}, port {port}: {error.strerror}.") from None
    server.set_app(application)
    return server


def _serve_until_signal(server: WSGIServer, announce: Callable[[], None]) -> int:
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # shutdown waits for the loop that this handler has interrupted.
        threading.Thread(target=server.shutdown).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        announce()
        server.serve_forever(poll_interval=0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return received[0] if received else 0
