"""How rows and numbers are printed."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.cli.options import Format
from sweep.insight.words import number

MAX_CELL = 60
PIPE_WIDTH = 10_000
# Control characters, those that turn the direction of writing, and halves of characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.\d+")


def print_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    form: Format,
    *,
    empty: str = "No rows.",
    spare: Sequence[str] = (),
) -> None:
    """JSON (a list of objects) and CSV hold every value as it is; a table is for reading.

    A table on a terminal leaves out the columns that do not fit, and says so: those named in
    `spare` first, then the last ones.
    """
    if form is Format.JSON:
        print(as_json([dict(zip(columns, row, strict=True)) for row in rows]))
    elif form is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    elif rows:
        _print_table(columns, rows, spare)
    else:
        print(empty, file=sys.stderr)


def as_json(value: Any) -> str:
    """Indented JSON; what JSON lacks (infinities, dates) becomes null or text."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def printable(text: str) -> str:
    """`text` without what a terminal would obey: names in databases come from anywhere."""
    return _CONTROL.sub("\ufffd", text)


def cell(value: Any) -> str:
    """A value for reading: four significant digits, - for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple | dict):
        value = json.dumps(value, ensure_ascii=False)
    text = printable(" ".join(str(value).split()))
    if _TIME.fullmatch(text):
        text = text[:19]
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def _print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], spare: Sequence[str]
) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    cells = [[cell(value) for value in row] for row in rows]
    widths = [
        max(cell_len(text) for text in [name, *(row[i] for row in cells)])
        for i, name in enumerate(columns)
    ]
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    shown = list(range(len(columns)))
    order = [columns.index(name) for name in spare if name in columns]
    order += [i for i in reversed(shown) if i not in order]
    while len(shown) > 1 and sum(widths[i] + 2 for i in shown) - 2 > console.width:
        shown.remove(order.pop(0))
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in shown]

    def line(texts: Sequence[str]) -> str:
        # By hand: rich's own table takes a second for two thousand rows.
        padded = []
        for i, right in zip(shown, numeric, strict=True):
            gap = " " * (widths[i] - cell_len(texts[i]))
            padded.append(gap + texts[i] if right else texts[i] + gap)
        return "  ".join(padded).rstrip()

    console.print(Text(line(columns), style="bold"), no_wrap=True, overflow="ellipsis", crop=True)
    print("\n".join(line(row) for row in cells))
    if len(shown) < len(columns):
        left = ", ".join(name for i, name in enumerate(columns) if i not in shown)
        print(f"Not shown for want of width: {left}. See: --format json", file=sys.stderr)


def print_text(text: str, indent: int = 0) -> None:
    """A sentence, broken between words to fit a terminal (never in a pipe)."""
    text = printable(text)
    if sys.stdout.isatty():
        width = min(100, shutil.get_terminal_size().columns)
        text = textwrap.fill(text, width, subsequent_indent=" " * indent, break_on_hyphens=False)
    print(text)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Name and text, a line each; a name is not repeated, a long text stays in its column."""
    width = max(len(name) for name, _ in facts) + 2
    before = None
    for name, text in facts:
        print_text(f"{'' if name == before else name:<{width}}{text}", indent=width)
        before = name
