"""Where and with what a study is run: what somebody needs who wants to run it again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("sweep", "torch", "optuna", "scikit-learn", "numpy", "pandas")
MAX_RUNS = 200
"""So many runs of a study are remembered, the last ones."""
_GIT_SECONDS = 5.0


def this_run(directory: Path, engine: str, device: str) -> dict[str, Any]:
    """One entry of a study's attribute `runs`: time (UTC), machine, versions, git, device, engine.

    `directory` is the study file's, `engine` as the engine describes itself, `device` cpu or cuda.
    """
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "platform": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        "engine": engine,
        "git": git_state(directory),
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str | None]:
    """Versions of what decides a score."""
    return {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}


def git_state(directory: Path) -> dict[str, Any] | None:
    """{"commit": hash, "dirty": bool} of the repository that holds `directory`; None without one.

    Dirty: a file that git tracks differs from the commit. Files it does not track do not count:
    the database may be one of them.
    """
    commit = _git(directory, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    """What git says about `directory`; None where it is not installed, refuses, or takes long."""
    # A repository may name a program of its own as file monitor; a lock would disturb its owner.
    command = ["git", "-c", "core.fsmonitor=false", "--no-optional-locks", "-C", str(directory)]
    try:
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
