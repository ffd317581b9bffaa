"""Figures of a study, drawn from stored rows alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweep.insight.selection import Candidate, candidates, choices
from sweep.insight.stored import StoredStudy
from sweep.insight.words import number

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#f0e442",
    "#808080",
)
"""Okabe and Ito's palette (2008), told apart by colour-blind readers, on white and on black; grey
for their black, which would not show on black."""
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "x",
    "star",
    "hexagon",
    "triangle-down",
)
GRID = "rgba(128, 128, 128, 0.3)"
TEXT = "#808080"


def cv_curve(study: StoredStudy) -> go.Figure | None:
    """Score against lambda: a point a COMPLETE trial, ± one standard error of its folds.

    A colour and a symbol a regularizer. Vertical lines stand at the best regularizer's lambda with
    the best score and at its lambda.1se, a horizontal one at the best score without a regularizer.
    None without trials that have a lambda. Readable on light and on dark pages.
    """
    found = [c for c in candidates(study) if c.lam is not None and c.lam > 0]
    if not found:
        return None
    import plotly.graph_objects as go

    figure = go.Figure()
    ranked = [choice for choice in choices(study) if choice.best is not None]
    for i, choice in enumerate(c for c in ranked if c.regularizer != "none"):
        points = sorted((c for c in found if c.regularizer == choice.regularizer), key=_by_lambda)
        figure.add_scatter(
            x=[c.lam for c in points],
            y=[c.score for c in points],
            error_y={"array": [c.score_se or 0.0 for c in points], "thickness": 1, "width": 2},
            customdata=[c.number for c in points],
            mode="markers",
            name=choice.regularizer,
            marker={
                "color": COLORS[i % len(COLORS)],
                "symbol": SYMBOLS[i % len(SYMBOLS)],
                "size": 7,
            },
            hovertemplate="trial %{customdata}<br>lambda %{x:.4g}<br>%{y:.5g}",
        )
    low, high = min(c.score for c in found), max(c.score for c in found)
    lams = [c.lam for c in found if c.lam is not None]
    best, strongest = ranked[0].best, ranked[0].strongest
    # Lines as traces: plotly misplaces the labels of its own lines on a logarithmic axis.
    if best is not None and best.lam:
        _line(figure, [best.lam] * 2, [low, high], f"best: {number(best.lam, 3)}", "dash")
        if strongest is not None and strongest.lam and strongest.number != best.number:
            name = f"lambda.1se: {number(strongest.lam, 3)}"
            _line(figure, [strongest.lam] * 2, [low, high], name, "dot")
    for choice in ranked:
        if choice.regularizer == "none" and choice.best is not None:
            y = choice.best.score
            _line(figure, [min(lams), max(lams)], [y, y], f"none: {number(y)}", "dashdot")
    figure.update_layout(
        # At the left, where the buttons of a page do not cover it.
        title={"text": f"{study.score} against lambda, ± one standard error", "x": 0.01},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"color": TEXT},
        template="none",
        legend={"orientation": "h", "y": -0.25},
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
    )
    figure.update_xaxes(type="log", title="lambda", gridcolor=GRID, exponentformat="power")
    figure.update_yaxes(title=study.score, gridcolor=GRID)
    if low > 0 and high > 10 * low:
        # A few failures to learn would press everything else into one line.
        figure.update_yaxes(type="log")
    return figure


def _by_lambda(candidate: Candidate) -> float:
    return candidate.lam or 0.0


def _line(figure: go.Figure, x: list[float], y: list[float], name: str, dash: str) -> None:
    line = {"color": TEXT, "dash": dash, "width": 1.5}
    figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="name")
