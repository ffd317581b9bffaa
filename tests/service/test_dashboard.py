"""The dashboard over HTTP: it reads, for whom it should, and edits only when told to."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweep.service.guard import guarded
from tests.command_lines import SWEEP
from tests.stored_studies import fill

Answer = tuple[int, bytes, dict[str, str]]


class Server:
    """A dashboard in a process of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Content-Type": "application/json", **headers}
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.getheaders())
        connection.close()
        return found

    def studies(self) -> list[str]:
        _, body, _ = self.ask("GET", "/api/studies")
        return [each["study_name"] for each in json.loads(body)["study_summaries"]]


@contextmanager
def dashboard(url: str, *options: str) -> Iterator[Server]:
    command = [SWEEP, "dashboard", "--port", "0", "--storage", url, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            if said.startswith("Warning"):
                said = process.stderr.readline()
            found = re.search(r"http://[^ ]*:(\d+)/", said)
            assert found is not None, said
            yield Server(int(found[1]))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)


EDITS = [
    ("POST", "/api/studies", {"study_name": "new", "directions": ["minimize"]}),
    ("DELETE", "/api/studies/1", None),
    ("POST", "/api/studies/1/rename", {"study_name": "renamed"}),
    ("PUT", "/api/studies/1/note", {"version": 1, "body": "x"}),
    ("POST", "/api/trials/1/tell", {"state": "Fail"}),
    ("POST", "/api/trials/1/user-attrs", {"user_attrs": {"a": 1}}),
]


def test_by_default_it_only_reads(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url)
    with dashboard(url) as server:
        assert server.ask("GET", "/dashboard")[0] == 200
        assert server.ask("HEAD", "/dashboard")[:2] == (200, b"")
        for method, path, body in EDITS:
            status, text, headers = server.ask(method, path, body)
            assert status == 405 and headers["Allow"] == "GET, HEAD", (method, path)
            assert b"--allow-edits" in text
        assert server.ask("OPTIONS", "/api/studies")[0] == 405
        assert server.studies() == ["digits"]
        assert len(json.loads(server.ask("GET", "/api/studies/1")[1])["trials"]) == 40


def test_it_answers_for_this_machine_only(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url)
    with dashboard(url, "--allow-host", "lab.example") as server:
        for host in (
            "127.0.0.1",
            f"localhost:{server.port}",
            "LocalHost",
            "[::1]:80",
            "lab.example",
        ):
            assert server.ask("GET", "/api/studies", Host=host)[0] == 200, host
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "",
            "10.1.2.3",
            "[",
            "localhost@evil",
        ):
            status, text, _ = server.ask("GET", "/api/studies", Host=host)
            assert status == 403 and b"digits" not in text, host


def test_edits_are_allowed_when_told_and_only_from_its_own_pages(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url)
    new = {"study_name": "new", "directions": ["minimize"]}
    with dashboard(url, "--allow-edits") as server:
        own = f"http://127.0.0.1:{server.port}"
        status, _, _ = server.ask("POST", "/api/studies", new, Origin="http://evil.example")
        assert status == 403 and server.studies() == ["digits"]
        assert server.ask("POST", "/api/studies", new, Origin=own)[0] == 201
        assert server.ask("DELETE", "/api/studies/1")[0] == 204
        assert server.studies() == ["new"]


@pytest.mark.parametrize(
    ("host", "allowed"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False)]
)
def test_listening_everywhere_it_answers_for_every_address_but_for_no_name(
    host: str, allowed: bool
) -> None:
    def application(environ: dict[str, object], start: object) -> list[bytes]:
        return [b"in"]

    guard = guarded(application, host, allow_edits=False)
    said: list[str] = []

    def ask(name: str) -> bool:
        environ = {"REQUEST_METHOD": "GET", "HTTP_HOST": name}
        return guard(environ, lambda status, headers: said.append(status)) == [b"in"]

    assert ask("10.1.2.3:8080") is ask("[fe80::1]:8080") is allowed
    assert not ask("evil.example:8080")
    assert ask("localhost:8080")
