"""Where compiled programs are kept between runs: for this user, on machines like this one. Imports
nothing but the standard library."""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

KEPT = 200
"""Compiled programs on disk, the least recently used of which go first."""
LEFT_SECONDS = 86_400.0
"""After so long nobody is at work on a file any more."""
FINISH = ".finish"
"""A compiler whose source has a file that is called so too may outlive the process it serves."""


def cache_directory() -> Path:
    """Where compiled steps lie: code that will be run, so nobody else may write there."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(home) / "sweep" / "steps"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = path.stat()
        safe = about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if safe and os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return _own_directory()


@cache
def _own_directory() -> Path:
    """One that lasts as long as this process."""
    path = Path(tempfile.mkdtemp(prefix="sweep-steps-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def lasts(directory: Path) -> bool:
    """Whether this directory of steps outlives this process."""
    return not _own_directory.cache_info().currsize or directory != _own_directory()


@cache
def processor() -> str:
    """What this machine's processor can do, as far as the system tells: what is compiled for it
    may use all of that, and a home directory may be shared with machines that lack some.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return value.strip()
    return platform.processor()


def tidy(directory: Path) -> None:
    """Removes what was not used for long, the compiler's own files, and what killed ones left."""
    for suffix in ("so", "json"):
        files = directory.glob(f"*.{suffix}")
        newest = sorted(files, key=lambda p: -p.stat().st_mtime)
        for old in newest[KEPT:]:
            old.unlink(missing_ok=True)
    now = time.time()
    # Shorter names under `inductor` are of what it has found out about the C++ compiler.
    leftovers = ("tmp*", "*.lock", "inductor/c???????*")
    for left in [path for pattern in leftovers for path in directory.glob(pattern)]:
        if now - left.stat().st_mtime > LEFT_SECONDS:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """All of the text or nothing, whoever else writes it."""
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)


def clean_up(source: str) -> None:
    """Removes what belongs to this source."""
    for left in Path(source).parent.glob(f"{Path(source).stem}.*"):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(library: str) -> Iterator[None]:
    """While entered, no other process does."""
    lock = f"{library}.lock"
    with open(lock, "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Who waits for it has it open, and finds the library.
            with contextlib.suppress(OSError):
                os.unlink(lock)


def unlock(library: str) -> None:
    """Removes the lock of a process that was ended, unless another one has it now."""
    lock = f"{library}.lock"
    with contextlib.suppress(OSError), open(lock, "r+") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(lock)
