"""Numbers and lists as people read them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

WITHOUT_RATIO = ("l1", "l2", "group_lasso", "spectral", "orthogonal", "vanishing")


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits: 0.1234, 3.2e-05, 1.234e+06; whole numbers as such; - for none."""
    if value is None:
        return "-"
    if math.isfinite(value) and value == int(value):
        return f"{int(value):d}" if abs(value) < 1e6 else f"{value:.3e}"
    return f"{value:.{digits}g}"


def value_text(value: Any) -> str:
    """A knob's value as a study file writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def params_text(params: Mapping[str, Any]) -> str:
    """`regularizer l1, lambda 3.2e-05`; the regularizer, its strength and the learning rate first.

    Without a regularizer its strength means nothing and is left out.
    """
    hidden = {"lambda", "l1_ratio"} if params.get("regularizer") == "none" else set()
    if params.get("regularizer") in WITHOUT_RATIO:
        hidden = {"l1_ratio"}
    known = ("regularizer", "lambda", "l1_ratio", "learning_rate")
    first = [name for name in known if name in params]
    names = [*first, *(name for name in params if name not in first)]
    shown = [f"{name} {value_text(params[name])}" for name in names if name not in hidden]
    return ", ".join(shown) or "nothing varied"


def duration(seconds: float) -> str:
    """7 s, 2 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def conjunction(words: Sequence[str]) -> str:
    """a, b and c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(n: int, singular: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{n} {singular}" if n == 1 else f"{n} {singular}s"
