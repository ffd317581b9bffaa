"""The study file as JSON Schema, for editors and other tools."""

from __future__ import annotations

from typing import Any

from sweep.spec.study import StudySpec

_PREFIX = "#/$defs/"


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a study file: keys, types, ranges, every knob's forms.

    What depends on several keys at once, or on the data, is checked by `sweep check` alone.
    """
    schema = StudySpec.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.pop("$defs")
    names = _short_names(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_rewritten(schema, names),
        "title": "A study file of sweep",
        "$defs": {names[name]: _rewritten(each, names) for name, each in definitions.items()},
    }


def _short_names(definitions: dict[str, Any]) -> dict[str, str]:
    """Pydantic names a generic model by all its arguments; a word and a number are enough."""
    names: dict[str, str] = {}
    for name in definitions:
        word = name.split("_")[0]
        taken = set(names.values())
        tries = (f"{word}{i}" if i > 1 else word for i in range(1, len(definitions) + 2))
        names[name] = next(each for each in tries if each not in taken)
    return names


def _rewritten(node: Any, names: dict[str, str]) -> Any:
    """`node` with short names, without generated titles, and with anyOf for oneOf.

    A model that has two kinds stands twice among the alternatives, where oneOf allows one match.
    """
    if isinstance(node, list):
        return [_rewritten(each, names) for each in node]
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "$ref":
            value = _PREFIX + names[value.removeprefix(_PREFIX)]
        found["anyOf" if key == "oneOf" else key] = _rewritten(value, names)
    return found
