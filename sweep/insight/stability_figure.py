"""The stability map as a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.insight.figures import GRID, TEXT
from sweep.insight.smoothing import Array, smooth_share
from sweep.insight.stability import Panel, Point, StabilityMap
from sweep.insight.words import number

if TYPE_CHECKING:
    import plotly.graph_objects as go

LOOKS = {
    "complete": ("#0072b2", "circle"),
    "pruned": ("#56b4e9", "diamond"),
    "loss_explosion": ("#d55e00", "x"),
    "gradient_explosion": ("#e69f00", "triangle-up"),
    "nonfinite_loss": ("#cc79a7", "square"),
    "nonfinite_gradient": ("#009e73", "star"),
    "nonfinite_parameter": ("#b3a100", "cross"),
    "nonfinite_score": ("#999999", "hexagram"),
}
"""A colour and a shape an outcome: Okabe and Ito's palette, its yellow darker for white pages."""
OTHER_LOOK = ("#999999", "pentagon")
# From stable to exploding, through grey. Blue and vermilion are told apart by everybody.
SHADES = [
    [0.0, "rgba(0, 114, 178, 0.30)"],
    [0.5, "rgba(128, 128, 128, 0.15)"],
    [1.0, "rgba(213, 94, 0, 0.50)"],
]
STEPS = 40, 24
PANEL, STRIP = 230, 110
"""Heights, in pixels, of a panel with a lambda axis and of one without."""


def stability_figure(drawn: StabilityMap, *, fixed: bool = True) -> go.Figure | None:
    """A panel a regularizer (down) and a clipping (across): trials, probability and bound.

    Shaded is the smooth probability of divergence (`smooth_share`), blank where there are too few
    trials to say; the line is the analytic bound. Without a regularizer there is no lambda: trials
    are then spread over the height of a strip. None without trials. For light and dark pages.
    `fixed`: as high as its panels need, else as the page that shows it says.
    """
    if not drawn.panels:
        return None
    from plotly.subplots import make_subplots

    across = list(dict.fromkeys(panel.clipping for panel in drawn.panels))
    down = list(dict.fromkeys(panel.regularizer for panel in drawn.panels))
    tall = [
        PANEL if any(p.has_lambda for p in drawn.panels if p.regularizer == name) else STRIP
        for name in down
    ]
    figure = make_subplots(
        rows=len(down),
        cols=len(across),
        shared_xaxes=True,
        row_heights=tall,
        column_titles=across,
        vertical_spacing=min(0.05, 0.3 / len(down)),
        horizontal_spacing=0.03,
    )
    named: set[str] = set()
    for panel in drawn.panels:
        place = {"row": down.index(panel.regularizer) + 1, "col": across.index(panel.clipping) + 1}
        _shade(figure, drawn, panel, place, first=not named)
        _bound(figure, drawn, panel, place, named)
        _trials(figure, panel, place, named)
        log = {"type": "log", "exponentformat": "power"} if panel.has_lambda else {}
        figure.update_yaxes(**log, showticklabels=panel.has_lambda and place["col"] == 1, **place)
    for i, name in enumerate(down, 1):
        if tall[i - 1] == STRIP:
            figure.update_yaxes(title=name, row=i, col=1)
            figure.update_yaxes(range=[-0.05, 1.05], showgrid=False, ticks="", row=i)
        else:
            figure.update_yaxes(title=f"{name}: lambda", row=i, col=1)
            figure.update_yaxes(range=_span(_lams(drawn)), row=i)
    figure.update_xaxes(
        type="log", range=_span(_rates(drawn)), gridcolor=GRID, zeroline=False, showline=False
    )
    figure.update_xaxes(title="learning_rate", row=len(down))
    figure.update_yaxes(gridcolor=GRID, zeroline=False, showline=False)
    figure.update_layout(
        title={"text": "Where training explodes", "x": 0.01},
        height=sum(tall) + 190 if fixed else None,
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"color": TEXT},
        template="none",
        legend={"orientation": "h", "y": -90 / sum(tall) if fixed else -0.25},
        margin={"l": 70, "r": 20, "t": 80, "b": 60},
    )
    return figure


def _shade(
    figure: go.Figure, drawn: StabilityMap, panel: Panel, place: dict[str, int], *, first: bool
) -> None:
    """The smooth probability, on a grid whose blanks are where there is no evidence."""
    rates = _grid(_rates(drawn), STEPS[0])
    lams = _grid(_lams(drawn), STEPS[1]) if panel.has_lambda else np.array([0.0, 0.5, 1.0])
    diverged = np.array([float(point.diverged) for point in panel.points])
    places = np.log10([[p.rate, p.lam] if p.lam else [p.rate] for p in panel.points])
    asked = np.array([[x, y] if panel.has_lambda else [x] for y in lams for x in rates])
    smooth = smooth_share(places, diverged, asked)
    share = smooth.share.reshape(len(lams), len(rates))
    evidence = smooth.evidence.reshape(len(lams), len(rates))
    figure.add_heatmap(
        x=_short(10**rates),
        y=_short(10**lams if panel.has_lambda else lams),
        z=[[None if math.isnan(v) else round(v, 2) for v in row] for row in share],
        text=[[f"{v:.1f}" for v in row] for row in evidence],
        hovertemplate="learning_rate %{x:.3g}<br>diverges with probability %{z:.2f}<br>"
        "resting on %{text} trials<extra></extra>",
        zmin=0,
        zmax=1,
        colorscale=SHADES,
        showscale=first,
        colorbar={"title": "P(diverges)", "thickness": 10, "len": 0.6, "outlinewidth": 0},
        hoverongaps=False,
        **place,
    )


def _bound(
    figure: go.Figure, drawn: StabilityMap, panel: Panel, place: dict[str, int], named: set[str]
) -> None:
    heights = 10 ** _grid(_lams(drawn), 60) if panel.has_lambda else np.array([0.0, 1.0])
    rates = [panel.bound_at(float(y) if panel.has_lambda else None) for y in heights]
    if None in rates:
        return
    name = "analytic bound"
    figure.add_scatter(
        x=_short(np.array(rates, dtype=float)),
        y=_short(heights),
        mode="lines",
        line={"color": TEXT, "width": 2, "dash": "dash"},
        name=name,
        legendgroup=name,
        showlegend=name not in named,
        hovertemplate="diverges above learning_rate %{x:.4g}<extra></extra>",
        **place,
    )
    named.add(name)


def _trials(figure: go.Figure, panel: Panel, place: dict[str, int], named: set[str]) -> None:
    outcomes = sorted({point.outcome for point in panel.points}, key=_rank)
    for outcome in outcomes:
        points = [point for point in panel.points if point.outcome == outcome]
        color, symbol = LOOKS.get(outcome, OTHER_LOOK)
        figure.add_scatter(
            x=_short(np.array([point.rate for point in points])),
            y=_short(np.array([_height(point) for point in points])),
            text=[_hover(point) for point in points],
            mode="markers",
            marker={
                "color": color,
                "symbol": symbol,
                "size": 7,
                "line": {"color": "rgba(255, 255, 255, 0.6)", "width": 0.5},
            },
            name=outcome,
            legendgroup=outcome,
            showlegend=outcome not in named,
            hovertemplate="%{text}<extra></extra>",
            **place,
        )
        named.add(outcome)


def _height(point: Point) -> float:
    """Lambda; without one a place in the strip that keeps neighbours in number apart."""
    return point.lam if point.lam is not None else point.number * (math.sqrt(5) - 1) / 2 % 1


def _hover(point: Point) -> str:
    lam = "" if point.lam is None else f"<br>lambda {number(point.lam)}"
    score = "" if point.score is None else f"<br>score {number(point.score)}"
    return (
        f"trial {point.number}: {point.outcome}<br>learning_rate {number(point.rate)}{lam}{score}"
    )


def _rank(outcome: str) -> tuple[int, str]:
    return (list(LOOKS).index(outcome) if outcome in LOOKS else len(LOOKS)), outcome


def _rates(drawn: StabilityMap) -> list[float]:
    return [point.rate for point in drawn.points]


def _lams(drawn: StabilityMap) -> list[float]:
    return [point.lam for point in drawn.points if point.lam is not None]


def _span(values: list[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis, with a margin."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def _grid(values: list[float], n: int) -> Array:
    low, high = _span(values)
    return np.linspace(low, high, n)


def _short(values: Any) -> list[float]:
    """Five digits are more than a screen shows, and a study's figures are stored as text."""
    return [float(f"{value:.5g}") for value in values]
