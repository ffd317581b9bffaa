"""The rooms: a file imports only from rooms below its own, and the front door imports little."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "sweep").rglob("*.py"))

# From the ground up. A file may import from its own room and from every room below it.
ROOMS = (
    "errors",
    "spec",
    "problem",
    "training",
    "guard",
    "store",
    "search",
    "insight",
    "service",
)
# __init__, cli and what only they use.
FRONT = len(ROOMS)
# The store is read by commands that must start quickly, so it knows neither torch nor a problem.
ALLOWED_BELOW = {"store": {"errors", "spec"}}
SLOW_TO_IMPORT = ("torch", "sklearn", "pandas")


def room_of(module: str) -> str:
    """The room of a dotted name: `sweep.training.lanes` -> `training`, `sweep.cli` -> `cli`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor(room: str) -> int:
    return ROOMS.index(room) if room in ROOMS else FRONT


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, wherever in the file it stands."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if base == "sweep":
                # `from sweep import store` takes the room, `from sweep import run` the front door.
                for alias in node.names:
                    inside = ROOT / "sweep" / alias.name
                    is_room = inside.is_dir() or inside.with_suffix(".py").is_file()
                    yield node.lineno, f"sweep.{alias.name}" if is_room else "sweep"
            else:
                yield node.lineno, base
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def _called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "attr", "") or getattr(function, "id", "")


def trespasses(source: str, module: str, is_package: bool = False) -> list[str]:
    """One sentence for each import from a room that the module's own may not use."""
    own = room_of(module)
    found = []
    for line, name in imported_modules(source, module, is_package):
        if name.split(".")[0] != "sweep":
            continue
        room = room_of(name)
        below = ALLOWED_BELOW.get(own)
        allowed = room in {own, *below} if below else floor(room) <= floor(own)
        if not allowed:
            found.append(f"{module}, line {line}: {own} imports {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_rooms_below_its_own(path: Path) -> None:
    assert trespasses(path.read_text("utf-8"), module_name(path), path.stem == "__init__") == []


def test_every_file_stands_in_a_room() -> None:
    """A new room gets a place in ROOMS, a new file beside cli.py is a decision, not an accident."""
    known = {*ROOMS, "__init__", "__main__", "api", "cli"}
    homeless = {room_of(module_name(path)) for path in FILES} - known
    assert not homeless, f"not in the order of rooms: {sorted(homeless)}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sweep.errors", "import sweep.spec"),
        ("sweep.problem.data", "from sweep.training.lanes import train"),
        ("sweep.problem.data", "from ..training import lanes"),
        ("sweep.problem.data", "from .. import training"),
        ("sweep.training.lanes", "def f():\n    from sweep import store"),
        ("sweep.training.lanes", "from sweep import run"),
        ("sweep.spec.study", "if TYPE_CHECKING:\n    from sweep.problem import folds"),
        ("sweep.search.space", "importlib.import_module('sweep.insight.report')"),
        ("sweep.store.storage", "from sweep.problem import folds"),
        ("sweep.service.worker", "import sweep.cli"),
    ],
)
def test_an_import_upwards_is_seen(module: str, source: str) -> None:
    assert len(trespasses(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sweep.store.storage", "from sweep.errors import StorageError\nimport sweep.spec.study"),
        ("sweep.training.lanes", "from . import reference\nfrom sweep.problem import models"),
        ("sweep.search.sweep", "from sweep import store, training\nimport torch"),
        ("sweep.cli", "from sweep import run\nimport sweep.service.api"),
    ],
)
def test_an_import_downwards_is_not(module: str, source: str) -> None:
    assert trespasses(source, module) == []


def test_vmap_appears_only_in_the_lanes() -> None:
    """Penalties, models, losses and divergence rules are written for one model."""
    batched = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [getattr(node, "id", None), getattr(node, "attr", None)]
            if isinstance(node, ast.Import | ast.ImportFrom):
                names += [part for alias in node.names for part in alias.name.split(".")]
            if "vmap" in names:
                batched.add(path.relative_to(ROOT / "sweep").as_posix())
    outside = {name for name in batched if not name.startswith("training/lanes")}
    assert not outside, f"vmap outside sweep/training/lanes*: {sorted(outside)}"


def imported_by(code: str, cwd: Path) -> set[str]:
    """Which of the slow packages a new interpreter holds after `code`."""
    report = f"import sys; print('LOADED', *[m for m in {SLOW_TO_IMPORT} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_sweep_is_quick(tmp_path: Path) -> None:
    assert imported_by("import sweep", tmp_path) == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["studies"]], ids=lambda a: " ".join(a)
)
def test_commands_that_do_not_train_start_quickly(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "from sweep.cli import main\n"
        f"try:\n    code = main({arguments!r})\n"
        "except SystemExit as end:\n    code = end.code\n"
        "assert not code, code"
    )
    assert imported_by(code, tmp_path) == set()


def test_a_mistake_in_the_file_is_said_before_all_that_trains_is_imported(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("study: wrong\nlerning_rate: 1\n")
    code = (
        "import sys; from sweep.cli import main\n"
        "for verb in ('check', 'run'):\n    assert main([verb, 'wrong.yaml']) == 2"
    )
    assert imported_by(code, tmp_path) == set()


def test_the_python_interface_is_what_it_says() -> None:
    import sweep
    from sweep import errors

    assert {"run", "open", *errors_of(errors)} <= set(sweep.__all__)
    assert set(sweep.__all__) <= set(dir(sweep))
    for name in sweep.__all__:
        assert getattr(sweep, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = sweep.nonesuch


def errors_of(module: object) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
