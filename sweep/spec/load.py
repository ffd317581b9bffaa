"""Reads a study file; every mistake in it becomes one sentence with its key path."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sweep.errors import SpecError
from sweep.spec.refusal import explain
from sweep.spec.study import DivergenceSpec, StudySpec

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class StudyFile:
    """A validated study, with where it came from."""

    spec: StudySpec
    text: str
    directory: Path
    name: str
    overrides: tuple[str, ...] = ()


def load_spec(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyFile:
    """The study at a path (YAML or JSON) or in a mapping, after `key.path=value` overrides.

    Raises SpecError naming the file, the key path, what was given and what is allowed.
    """
    if isinstance(source, Mapping):
        name, directory = "study", Path.cwd()
        raw: Any = _as_json(source)
        text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    else:
        path = Path(source)
        name = str(source)
        text = _read(path)
        directory = path.resolve().parent
        raw = parse_yaml(text, name)
    if not isinstance(raw, dict):
        raise SpecError(f"{name}: a study file is a mapping of keys, this is {_a(raw)}.")
    for override in overrides:
        _apply(raw, override)
    return StudyFile(validate(raw, name), text, directory, name, tuple(overrides))


def validate(raw: Mapping[str, Any], name: str) -> StudySpec:
    """The typed study; raises SpecError with at most two sentences on the first mistakes."""
    try:
        return StudySpec.model_validate(raw)
    except ValidationError as error:
        problems = explain(error, raw)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SpecError(f"{name}: {problems[0]}{more}") from None
    except RecursionError:
        raise SpecError(f"{name}: nested too deeply to be a study file.") from None


def divergence_rules(given: Mapping[str, Any], name: str) -> DivergenceSpec:
    """The rules of divergence alone; raises SpecError as for the `divergence` of a study file."""
    study = {"study": name, "data": {"source": "sklearn:diabetes"}, "task": "regression"}
    whole = {**study, "model": {"kind": "linear"}, "train": {"learning_rate": 1.0}}
    return validate({**whole, "divergence": dict(given)}, name).divergence


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers and booleans (1e-6 is a number, `on` a word); no aliases, no repeats."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(_dropped)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        for _dropped in [("bool", "float", "int", "timestamp", "value", "merge")]
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            # Nested aliases make a small file expand without bound.
            raise yaml.composer.ComposerError(
                None,
                None,
                "aliases (*name) are not supported",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not text", key_node.start_mark
                )
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice", key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+[eE][-+]?[0-9]+"
        r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
# YAML 1.1 reads 010 as eight; YAML 1.2 and every reader of a study file as ten.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def parse_yaml(text: str, name: str) -> Any:
    """YAML 1.2 scalars; raises SpecError with line and column."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise SpecError(f"{name}:{where} not readable as YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"{name}: not readable as YAML: {reason}.") from None
    except RecursionError:
        raise SpecError(f"{name}: nested too deeply to be a study file.") from None


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise SpecError(f"{path} is a folder; give the path of a study file (.yaml).")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path(".")
        there = sorted(p.name for p in folder.glob("*.y*ml"))
        near = difflib.get_close_matches(path.name, there, n=1)
        hint = f" Did you mean {folder / near[0]}?" if near else ""
        known = f" Study files in {folder}: {', '.join(there[:8])}." if there else ""
        raise SpecError(f"No study file {path}.{hint or known}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"Cannot read {str(path)!r}: {reason}.") from None
    if len(data) > MAX_BYTES:
        raise SpecError(f"{path} is larger than {MAX_BYTES:,} bytes, too large for a study file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not UTF-8 text, so it is no study file.") from None


def _as_json(source: Mapping[str, Any]) -> Any:
    """A mapping as a study file would hold it: NumPy's scalars are numbers, paths are text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return dict(value)
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            return value.item()
        raise TypeError(f"a study has text, numbers, lists and mappings, no {type(value).__name__}")

    try:
        return json.loads(json.dumps(dict(source), default=plain))
    except (TypeError, ValueError) as error:
        raise SpecError(f"study: {error}.") from None
    except RecursionError:
        raise SpecError("study: nested too deeply to be a study.") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        shown = " ".join(override.split())
        raise SpecError(f"--set {shown}: write key.path=value, as in train.epochs=5.")
    node = raw
    for key in keys[:-1]:
        child = node.get(key)
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    node[keys[-1]] = parse_yaml(text, f"--set {' '.join(path.split())}")


def _a(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "empty"}
    return names.get(type(value), f"a {type(value).__name__}")
