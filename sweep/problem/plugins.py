"""Objects of the user's own, named `python:module:attribute` in a study file."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from sweep.errors import SpecError

PREFIX = "python:"

_study_folders: list[str] = []


def load_object(name: str, directory: Path) -> Any:
    """What `python:module:attribute` names; `directory` is the study file's folder.

    The folder is appended to `sys.path`, so a module beside the study file is found and an
    installed one of the same name goes before it. Raises SpecError where the module or the
    attribute does not exist, or where importing the module fails.
    """
    module_name, _, attribute = name.removeprefix(PREFIX).partition(":")
    if not name.startswith(PREFIX) or not module_name or not attribute:
        raise SpecError(f"{name!r} names nothing: write python:module:attribute.")
    _append(directory)
    module = _import(name, module_name, directory)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise SpecError(
            f"{name}: module {module_name} has no {attribute!r}."
            f"{_nearest(attribute, public)}{_listing('Names there', public)}"
        ) from None


def describe(error: BaseException) -> str:
    """An exception of the user's code in one line: its type and message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _append(directory: Path) -> None:
    """Makes `directory` the one study folder on `sys.path`.

    Two folders may hold different modules of one name. Only the folder of the study at hand is
    searched, and what was imported from the others is forgotten.
    """
    folder = str(directory.resolve())
    for other in [other for other in _study_folders if other != folder]:
        _study_folders.remove(other)
        if other in sys.path:
            sys.path.remove(other)
        for key, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            if path and Path(path).is_relative_to(other) and not _installed(path):
                del sys.modules[key]
    if folder not in sys.path:
        sys.path.append(folder)
        _study_folders.append(folder)
    importlib.invalidate_caches()


def _installed(path: str) -> bool:
    """Whether another entry of `sys.path` also holds the file, as a venv in a study's folder."""
    return any(entry and Path(path).is_relative_to(entry) for entry in sys.path)


def _import(name: str, module_name: str, directory: Path) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(missing + "."):
            raise SpecError(
                f"{name}: module {module_name} imports {missing!r}, which is not installed."
            ) from error
        beside = sorted(path.stem for path in directory.glob("*.py"))
        raise SpecError(
            f"{name}: no module {module_name!r} is installed or in {directory}."
            f"{_nearest(module_name, beside)}{_listing('Modules there', beside)}"
        ) from None
    except (Exception, SystemExit) as error:
        raise SpecError(f"{name}: importing {module_name} raised {describe(error)}.") from error


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _listing(title: str, names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f" {title}: {', '.join(names[:8])}{more}." if names else ""
