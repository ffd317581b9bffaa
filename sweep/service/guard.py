"""What stands before the dashboard: who is spoken to, and that nothing is changed unless allowed.

The dashboard itself asks nobody who they are. A page elsewhere in the user's browser must not
reach it under a name of its own (DNS rebinding: hence the list of hosts), nor send it edits
(hence the check of Origin); and readers should not be able to delete a study by a slip.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable
from typing import Any
from urllib.parse import urlsplit

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

READING = ("GET", "HEAD")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = ("0.0.0.0", "::")


def guarded(
    application: Application, host: str, *, allow_edits: bool, more_hosts: Collection[str] = ()
) -> Application:
    """`application`, answering only requests addressed to this machine, and reading ones.

    Allowed are the names of this machine, `host` (the address it listens on) and `more_hosts`;
    listening everywhere, also every numeric address, which no other page can have for a name.
    A request to another host gets 403, an edit 405 unless `allow_edits`, and 403 where it comes
    from a page of another origin.
    """
    allowed = {name.lower().strip("[]") for name in (*LOCAL_HOSTS, host, *more_hosts)}

    def answer(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        given = str(environ.get("HTTP_HOST", ""))
        name = _name(given)
        if name not in allowed and not (host in _EVERYWHERE and _is_address(name)):
            return _refuse(
                start,
                "403 Forbidden",
                f"This dashboard does not answer for the host {given[:100]!r}. "
                "To allow it: sweep dashboard --allow-host NAME",
            )
        if environ["REQUEST_METHOD"] not in READING:
            if not allow_edits:
                return _refuse(
                    start,
                    "405 Method Not Allowed",
                    "This dashboard is read-only. To edit: sweep dashboard --allow-edits",
                    ("Allow", ", ".join(READING)),
                )
            origin = environ.get("HTTP_ORIGIN")
            if origin is not None and urlsplit(origin).netloc.lower() != given.lower():
                return _refuse(start, "403 Forbidden", "Edits come from the dashboard's own pages.")
        return application(environ, start)

    return answer


def _name(host: str) -> str:
    """The host of `host[:port]`, lower case, an IPv6 address without its brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refuse(
    start: Callable[..., Any], status: str, text: str, *headers: tuple[str, str]
) -> Iterable[bytes]:
    body = f"{text}\n".encode()
    fixed = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start(status, [*fixed, *headers])
    return [body]
