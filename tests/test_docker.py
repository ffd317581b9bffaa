"""The image and the compose file, as far as they can be checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from sweep.store.connection import storage_url
from tests.command_lines import ROOT, SWEEP, parse, sweep_arguments

BIN = Path(sys.executable).parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def instructions(*names: str) -> list[str]:
    """The arguments of the Dockerfile's instructions of these names, in order."""
    lines = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    words = [line.split(None, 1) for line in lines.splitlines() if line.strip()]
    return [argument.strip() for name, argument in words if name in names]


def docker_ignores(path: str) -> bool:
    """Whether .dockerignore keeps `path` out: the last pattern that fits it or a parent decides."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        expression = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(expression, prefix) for prefix in prefixes):
            ignored = not line.startswith("!")
    return ignored


def tracked(folder: str) -> list[str]:
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    names = [path.relative_to(ROOT).as_posix() for path in files]
    return [n for n in names if "__pycache__" not in n and not re.search(r"\.db(-\w+)?$", n)]


def storage(folder: Path) -> dict[str, str]:
    return {**os.environ, "SWEEP_STORAGE": f"sqlite:///{folder / 'sweep.db'}"}


def run(command: list[Any], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command} returned {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_compose_file_is_valid_by_the_compose_specification() -> None:
    run([BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE_FILE])


def test_docker_compose_reads_the_file() -> None:
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("needs the docker command with its compose plugin (no daemon)")
    password = "a b$c#d"
    shown = run(
        ["docker", "compose", "--file", COMPOSE_FILE, "config", "--format", "json"],
        env={**os.environ, "POSTGRES_PASSWORD": password},
    )
    worker = json.loads(shown)["services"]["worker"]
    assert worker["environment"]["PGPASSWORD"].replace("$$", "$") == password


def test_there_is_a_database_a_dashboard_and_a_worker() -> None:
    assert set(SERVICES) == {"postgres", "dashboard", "worker"}
    assert SERVICES["postgres"]["image"].startswith("postgres:17")
    mounts = [mount.split(":") for mount in SERVICES["postgres"]["volumes"]]
    assert [(m[0], m[1]) for m in mounts] == [("postgres", "/var/lib/postgresql/data")]
    assert "postgres" in COMPOSE["volumes"]


def test_only_this_machine_reaches_a_port() -> None:
    ports = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert ports == {
        "postgres": [],
        "dashboard": ["127.0.0.1:${DASHBOARD_PORT:-8080}:8080"],
        "worker": [],
    }


def test_a_service_starts_once_what_it_needs_is_healthy() -> None:
    for name in ("dashboard", "worker"):
        for needed, how in SERVICES[name]["depends_on"].items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[needed]
    # By TCP: the server that initialises a new volume answers on its socket only.
    assert "--host=127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"]


def test_any_number_of_workers_can_run_and_a_finished_one_stays_finished() -> None:
    worker = SERVICES["worker"]
    assert not {"container_name", "ports", "healthcheck"} & set(worker)
    assert re.fullmatch(r"on-failure:\d+", worker["restart"])
    for name in ("postgres", "dashboard"):
        assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_with_the_least_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
    user = service.get("user") or instructions("USER")[-1]
    assert user not in ("root", "0")
    binds = [m for m in service.get("volumes", []) if m.startswith((".", "/", "~"))]
    assert all(mount.endswith(":ro") for mount in binds)


def test_no_secret_is_written_down() -> None:
    for service in SERVICES.values():
        for key, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{key} must come from outside"
        address = service["environment"].get("SWEEP_STORAGE", "")
        assert not re.search(r"//[^/]*:[^/]*@", address), "the password belongs into PGPASSWORD"
    assert not any("PASSWORD" in argument for argument in instructions("ENV", "ARG", "RUN"))


def test_every_variable_is_documented_and_every_documented_one_is_used() -> None:
    text = COMPOSE_FILE.read_text("utf-8")
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text)) | set(SERVICES["worker"]["build"]["args"])
    example = (ROOT / ".env.example").read_text("utf-8")
    settings = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert set(settings) == used
    assert settings["POSTGRES_PASSWORD"] == ""
    assert ".env" in (ROOT / ".gitignore").read_text("utf-8").split()


def test_hadolint_finds_nothing() -> None:
    run([BIN / "hadolint", "--no-color", ROOT / "Dockerfile"])


def test_the_image_runs_the_tested_python_and_not_as_root() -> None:
    (image,) = instructions("FROM")
    version = Version(re.fullmatch(r"python:(\d+\.\d+)-slim\S*", image)[1])  # type: ignore[index]
    assert f">={version}" in PROJECT["requires-python"]
    assert instructions("USER") == ["10001"]


def test_what_the_image_copies_exists_and_is_sent_to_the_build() -> None:
    copied = [part for line in instructions("COPY") for part in line.split()[:-1]]
    assert {"sweep", "studies", "pyproject.toml", "constraints.txt"} <= set(copied)
    for source in copied:
        path = ROOT / source
        assert path.exists(), source
        for file in tracked(source) if path.is_dir() else [source]:
            assert not docker_ignores(file), file


@pytest.mark.parametrize(
    "path",
    [".env", ".git/config", ".venv/bin/python", "sweep.db", "studies/sweep.db", "tests/a.py"],
)
def test_nothing_private_or_useless_is_sent_to_the_build(path: str) -> None:
    assert docker_ignores(path)


def test_dependencies_are_installed_before_the_source_is_copied() -> None:
    """A change of the source then leaves the layer with torch as it was."""
    order = [DOCKERFILE.index(step) for step in ("-r requirements.txt", "COPY sweep", "--no-deps")]
    assert order == sorted(order)
    script = re.search(r'python -c "(import tomllib.*)" >', DOCKERFILE)
    assert script
    listed = run([sys.executable, "-c", script[1]], cwd=ROOT)
    assert listed.splitlines() == PROJECT["dependencies"]


@pytest.mark.parametrize("name", ["dashboard", "worker", "image"])
def test_a_command_parses(name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    command = SERVICES[name]["command"] if name != "image" else json.loads(instructions("CMD")[-1])
    arguments = sweep_arguments(command)
    assert arguments is not None
    parse(arguments)


def test_the_comments_in_the_compose_file_show_commands_that_parse(monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    shown = re.findall(
        r"docker compose run worker (sweep [^#]*?)(?:  |\n)", COMPOSE_FILE.read_text()
    )
    assert shown
    for line in shown:
        arguments = sweep_arguments(line.replace("NAME", "digits_mlp").split())
        assert arguments is not None
        parse(arguments)


def test_the_storage_address_is_one_the_store_takes() -> None:
    address = SERVICES["worker"]["environment"]["SWEEP_STORAGE"]
    assert storage_url(address) == "postgresql+psycopg://sweep@postgres/sweep"
    database = SERVICES["postgres"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("sweep", "sweep")


def test_the_workers_command_runs(tmp_path: Path) -> None:
    """In a folder laid out as the image's, on a database of its own, with little to do."""
    for copied in instructions("COPY"):
        if copied.startswith("studies"):
            shutil.copytree(ROOT / "studies", tmp_path / copied.split()[-1])
    command = [SWEEP, *SERVICES["worker"]["command"][1:], "--trials", "2"]
    run([*command, "--set", "train.epochs=1"], cwd=tmp_path, env=storage(tmp_path))
    listed = run([SWEEP, "trials", "digits-mlp", "--format", "json"], env=storage(tmp_path))
    assert len(json.loads(listed)) == 2


def test_the_dashboard_becomes_healthy(tmp_path: Path) -> None:
    """Its own command and its own health check, on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"0.0.0.0": "127.0.0.1", "8080": port}
    command = [here.get(word, word) for word in SERVICES["dashboard"]["command"][1:]]
    kind, _, *check = SERVICES["dashboard"]["healthcheck"]["test"]
    assert kind == "CMD"
    check = [sys.executable, *(word.replace(":8080", f":{port}") for word in check)]
    server = subprocess.Popen([SWEEP, *command], env=storage(tmp_path), cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(check, capture_output=True).returncode:
            assert server.poll() is None, "the dashboard ended"
            assert time.monotonic() < deadline, "the dashboard did not become healthy"
            time.sleep(0.2)
    finally:
        server.terminate()
        server.wait(20)
