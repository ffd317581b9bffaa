"""A figure as a file: a page that opens without a network, or plotly's JSON."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import RequestError
from sweep.store.export import appearing, check_target

if TYPE_CHECKING:
    import plotly.graph_objects as go

SUFFIXES = (".html", ".json")
CONFIG = {"displaylogo": False, "responsive": True}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0.5rem; background: Canvas; color: CanvasText; font-family: sans-serif; }}
</style>
</head>
<body>
{figure}
</body>
</html>
"""
"""Figures have no ground of their own: the reader's browser chooses a light or a dark one."""


def check_page(path: Path, url: str, *, replace: bool) -> None:
    """Raises RequestError for a file that no figure of the database at `url` can be written to."""
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(
            f"{path} has no suffix that says how to write it. Give one of: {', '.join(SUFFIXES)}. "
            "The page has a button that saves the figure as PNG."
        )
    check_target(path, url, "figure.html", replace=replace)


def write_page(figure: go.Figure, path: Path, title: str) -> None:
    """Writes the figure as the suffix says; RequestError where the file cannot be written."""
    if path.suffix.lower() == ".json":
        text = str(figure.to_json())
    else:
        # The library travels in the page (5 MB): what is opened offline must not be blank.
        drawn = figure.to_html(full_html=False, include_plotlyjs=True, config=CONFIG)
        text = PAGE.format(title=html.escape(title), figure=drawn)
    with appearing(path) as part:
        part.write_text(text, "utf-8")
