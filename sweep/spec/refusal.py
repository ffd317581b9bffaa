"""What is wrong with a study file, in words: key path, what was given, what is allowed.

Pydantic reports one error for every alternative that a value might have been meant as; a reader
wants one sentence for every place that is wrong.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from sweep.spec.models import BUILT_IN, ModelSpec
from sweep.spec.study import StudySpec

Path = tuple[str | int, ...]
_OWN = "python:module:name"
_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "text",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "string_too_short": "not empty",
}


def explain(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """One sentence for each place in `raw` that is wrong, the first one first."""
    by_path: dict[Path, list[Any]] = {}
    for each in error.errors(include_url=False):
        by_path.setdefault(_path(each, raw), []).append(each)
    # Of a value and its parts only the innermost: the others are alternatives it was not meant as.
    inner = [p for p in by_path if not any(_is_within(other, p) for other in by_path)]
    # Keys and texts of the file may hold line breaks.
    return [" ".join(_sentence(path, by_path[path], raw).split()) for path in inner]


def nearest(word: str, allowed: Sequence[str]) -> str:
    """`. Did you mean relu? Allowed: ...`"""
    by_lower = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    hint = f". Did you mean {by_lower[near[0]]}?" if near else "."
    return f"{hint} Allowed: {', '.join(allowed)}."


def _path(error: Any, raw: Any) -> Path:
    """The error's place in the file: its location without the names of alternatives tried."""
    path: list[str | int] = []
    node, place = raw, error["loc"]
    for i, key in enumerate(place):
        in_list = isinstance(node, list) and isinstance(key, int) and key < len(node)
        if in_list or (isinstance(node, Mapping) and key in node):
            node = node[key]
        elif not (error["type"] == "missing" and i == len(place) - 1):
            continue
        path.append(key)
    return tuple(path)


def _is_within(inner: Path, outer: Path) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _sentence(path: Path, errors: Sequence[Any], raw: Mapping[str, Any]) -> str:
    name = _dotted(path)
    first = errors[0]
    kind, given = first["type"], _shown(first["input"])
    if kind == "extra_forbidden":
        return f"{name}: unknown key{nearest(str(path[-1]), _known_keys(first['loc'][:-1]))}"
    if kind == "missing":
        return f"{name}: missing. {_meaning(path, first['loc'])}".rstrip()
    if kind == "value_error":
        message = str((first.get("ctx") or {}).get("error", first["msg"]))
        return f"{name}: {message}." if name else f"{message}."
    if path == ("model",) or path == ("model", "kind"):
        return _model_sentence(raw.get("model"))
    if kind == "union_tag_invalid":
        value = _short(first["input"])
        return f"{name}: {value} is a range, but this takes one value or {{choices: [...]}}."
    limits = [_limit(e) for e in errors if e["type"] in _LIMITS]
    if limits:
        return f"{name}: {given}, but it must be {' or '.join(limits)}."
    options = [option for e in errors for option in _options(e)]
    others = [_expected(e) for e in errors if not _options(e)]
    if path[:1] == ("regularizer",) and options:
        # Its alternative to the listed words is text of one form only.
        options, others = list(dict.fromkeys([*options, _OWN])), []
    if options and isinstance(first["input"], str):
        allowed = [*options, *dict.fromkeys(others)]
        return (
            f"{name}: {_shown(first['input'], verb='is unknown')}{nearest(first['input'], allowed)}"
        )
    wanted = [*([" | ".join(options)] if options else []), *dict.fromkeys(others)]
    return f"{name}: {given}, but it must be {' or '.join(wanted)}."


def _limit(error: Any) -> str:
    words, key = _LIMITS[error["type"]]
    limit = error["ctx"][key]
    return f"{words} {limit:g}" if isinstance(limit, float) else f"{words} {limit}"


def _options(error: Any) -> list[str]:
    """The words that an error's alternative would have taken."""
    if error["type"] == "literal_error":
        # In its message pydantic writes 'a', 'b' or 'c'.
        return re.findall(r"'([^']*)'", error["ctx"]["expected"])
    if error["type"] == "string_pattern_mismatch" and "python:" in error["ctx"]["pattern"]:
        return [_OWN]
    return []


def _expected(error: Any) -> str:
    kind, context = error["type"], error.get("ctx") or {}
    if kind in _TYPES:
        keys = _known_keys(error["loc"]) if kind.startswith("model") else []
        return f"{_TYPES[kind]} ({', '.join(keys)})" if keys else _TYPES[kind]
    if kind in ("too_short", "string_too_long"):
        n = context.get("min_length", context.get("max_length"))
        return f"a list of at least {n}" if kind == "too_short" else f"at most {n} characters"
    if kind == "string_pattern_mismatch":
        return "one line of text"
    message = str(error["msg"]).removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _shown(value: Any, verb: str = "was given") -> str:
    if value is None:
        return f"nothing {verb}"
    text = type(value).__name__ if isinstance(value, BaseModel) else _short(value)
    return f"{text} {verb}"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits
        return "a value too long to show"
    return text if len(text) <= 60 else text[:57] + "..."


def _dotted(path: Path) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{str(key)[:60]}" for key in path]
    return "".join(parts).lstrip(".")


def _model_sentence(model: Any) -> str:
    allowed = [*BUILT_IN, _OWN]
    kind = model.get("kind") if isinstance(model, Mapping) else None
    if isinstance(model, Mapping) and kind is None:
        return f"model.kind: missing. Allowed: {', '.join(allowed)}."
    if isinstance(kind, str):
        return f"model.kind: {_short(kind)} is unknown{nearest(kind, allowed)}"
    if isinstance(model, str) and model in BUILT_IN:
        return f"model: {_short(model)} was given, but it must be a mapping: {{kind: {model}}}."
    if isinstance(model, Mapping):
        return f"model.kind: {_short(kind)} was given, but it must be one of {', '.join(allowed)}."
    return f"model: {_shown(model)}, but it must be a mapping such as {{kind: mlp}}."


def _known_keys(loc: Sequence[Any]) -> list[str]:
    """The keys that the model at an error's location has."""
    tag = loc[-1] if loc else ""
    if tag in ("<range>", "<integers>"):
        return ["low", "high", "log", "step"]
    if tag == "<choices>":
        return ["choices"]
    model = _model_at(loc)
    if model is None:
        return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(loc: Sequence[Any]) -> type[BaseModel] | None:
    found: Any = StudySpec
    kinds = {f"<{kind}>": model for model in _model_classes() for kind in _kinds(model)}
    for key in loc:
        if key in kinds:
            found = kinds[key]
            continue
        if not _is_model(found):
            named = {model.__name__: model for model in _alternatives(found)}
            found = named.get(str(key), found)
            continue
        aliases = {field.alias or name: field for name, field in found.model_fields.items()}
        field = aliases.get(str(key))
        found = field.annotation if field else None
        options = _alternatives(found)
        found = options[0] if len(options) == 1 and not _is_model(found) else found
    return found if _is_model(found) else None


def _alternatives(annotation: Any) -> list[type[BaseModel]]:
    """The models that a union, or a knob of one, may be."""
    found: list[type[BaseModel]] = []
    for option in getattr(annotation, "__args__", ()):
        found += [option] if _is_model(option) else _alternatives(option)
    return found


def _is_model(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


def _model_classes() -> list[type[BaseModel]]:
    union = ModelSpec.__origin__  # type: ignore[attr-defined]
    return [option.__origin__ for option in union.__args__]


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    return getattr(model.model_fields["kind"].annotation, "__args__", ())


def _meaning(path: Path, loc: Sequence[Any]) -> str:
    if len(path) == 1:
        return "Every study file needs study, data, task, model and train."
    known = _known_keys(loc[:-1])
    return f"Keys there: {', '.join(known)}." if known else ""
