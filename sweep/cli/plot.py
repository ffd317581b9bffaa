"""Small plots of the last steps before a divergence, in braille dots, plain text in a pipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from sweep.insight.words import number

WIDTH, HEIGHT = 50, 6
"""In characters; each holds 2 x 4 dots."""
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
BROKEN = "×"


def print_plots(failure: Mapping[str, Any], stream: TextIO) -> None:
    """Loss and gradient norm over the recorded steps, logarithmically."""
    from rich.console import Console
    from rich.text import Text

    # Never wrapped, whatever the terminal: a broken line would be no plot.
    console = Console(file=stream, highlight=False, soft_wrap=True)
    last = int(failure.get("step") or 0)
    if failure.get("reason") == "nonfinite_score":
        last -= 1
    plots = (("losses", "loss", "yellow"), ("grad_norms", "gradient norm", "cyan"))
    for key, label, colour in plots:
        values: list[float | None] = failure.get(key) or []
        finite = [v for v in values if v is not None]
        if not values:
            continue
        ends = f"{number(finite[0])} to {number(finite[-1])}" if finite else "nothing finite"
        lost = ", then not finite" if values[-1] is None else ""
        steps = f"steps {last - len(values) + 1} to {last}"
        console.print(Text(f"\n  {label}, {steps} (log scale): {ends}{lost}"))
        for axis, dots in plot(values):
            console.print(Text(f"  {axis:>9} ┤").append(dots.rstrip(), style=colour))


def plot(
    values: Sequence[float | None], width: int = WIDTH, height: int = HEIGHT
) -> list[tuple[str, str]]:
    """(axis label, dots) of each line, the topmost first; oldest values to the left.

    The logarithm of |value| over the step: the least finite value is the lowest dot, the greatest
    the highest. More values than dots are thinned by taking the greatest of each column's; × in
    the lowest line stands where a value was not finite.
    """
    columns = 2 * width
    stride = max(1, math.ceil(len(values) / columns))
    groups = [values[i : i + stride] for i in range(0, len(values), stride)]
    logs = [
        None
        if any(v is None for v in group)
        else math.log10(max(max(abs(v or 0.0) for v in group), 1e-300))
        for group in groups
    ]
    known = [x for x in logs if x is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    cells = [[0x2800] * math.ceil(len(groups) / 2) for _ in range(height)]
    for i, x in enumerate(logs):
        if x is None:
            continue
        up = round((x - low) / (high - low) * (4 * height - 1)) if high > low else 2 * height
        row, dot = divmod(4 * height - 1 - up, 4)
        cells[row][i // 2] |= _DOTS[i % 2][dot]
    lines = ["".join(map(chr, row)) for row in cells]
    marks = [None in logs[2 * i : 2 * i + 2] for i in range(len(lines[-1]))]
    lines[-1] = "".join(
        BROKEN if mark else dots for mark, dots in zip(marks, lines[-1], strict=True)
    )
    labels = [""] * height
    labels[-1] = number(10**low) if known else "-"
    if high > low:
        labels[0] = number(10**high)
    # The empty braille cell is no space: searches and trailing-space checks would stumble over it.
    return [(label, dots.replace("\u2800", " ")) for label, dots in zip(labels, lines, strict=True)]
