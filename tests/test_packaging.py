"""What pip installs: the pins of constraints.txt, and a package that holds all its files."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.command_lines import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_constraints_pin_exactly_what_is_installed_and_nothing_else() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[canonicalize_name(name)] = version
    installed = installed_for_sweep()
    assert pinned.keys() == installed.keys()
    # Version.public has no +cpu: any build of the pinned torch will do.
    differ = {n: v for n, v in installed.items() if Version(v).public != pinned[n]}
    assert not differ, f"installed, but pinned otherwise: {differ}"


def installed_for_sweep() -> dict[str, str]:
    """Name and version of everything that the dependencies and the extra `test` bring along."""
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    todo = [Requirement(line) for line in wanted]
    versions: dict[str, str] = {}
    seen = set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        # torch's CUDA build pins its own libraries.
        if (name, extras) in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add((name, extras))
        distribution = importlib.metadata.distribution(name)
        versions[name] = distribution.version
        for line in distribution.requires or []:
            needed = Requirement(line)
            contexts = [{"extra": extra} for extra in ("", *extras)]
            if not needed.marker or any(needed.marker.evaluate(c) for c in contexts):
                todo.append(needed)
    return versions


def test_an_installed_copy_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """The image installs a copy, the tests run from the checkout: both must hold the same."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "sweep", tmp_path / "sweep", ignore=ignore)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("sweep/")}
    files = (tmp_path / "sweep").rglob("*")
    assert packed == {f.relative_to(tmp_path).as_posix() for f in files if f.is_file()}
