"""Whether two stored descriptions say the same, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FREE = ("trials", "concurrency")
"""Keys of a study file that may change when the study is continued."""
CHOOSING = ("sampler", "enqueue")
"""Keys that decide which trials are tried, and nothing about how one is scored."""


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`train.epochs: 20 -> 30`, one for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{path}.{key}" if path else str(key)
            found += differences(old.get(key), new.get(key), inner)
        return found
    if old == new:
        return []
    return [f"{path}: {_short(old)} -> {_short(new)}"]


def spec_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], free: tuple[str, ...] = FREE
) -> list[str]:
    """`differences` of two specifications, the keys `free` left out of both."""
    return differences(
        {key: value for key, value in old.items() if key not in free},
        {key: value for key, value in new.items() if key not in free},
    )


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
