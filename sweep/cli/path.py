"""`sweep path`: the lambda path, and with --map where over it training explodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweep.cli.options import Format, FormatOption, StorageOption, StudyArgument
from sweep.cli.output import print_rows, print_text
from sweep.errors import RequestError
from sweep.insight.words import counted, number

if TYPE_CHECKING:
    from sweep.insight.stability import Bin, Panel, StabilityMap
    from sweep.insight.stored import StoredStudy


def path(
    study: StudyArgument,
    draw_map: Annotated[
        bool,
        typer.Option("--map", help="Where over learning rate and lambda training explodes."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Draw it instead: .html, a page that opens offline, or .json, plotly's figure.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the file if it is there.")
    ] = False,
    storage: StorageOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List what each lambda of each regularizer scored, or draw it.

    With --map: how many trials diverged at which learning rate and lambda.

    \b
    Example:
      sweep path digits-mlp --map -o map.html
    """
    from sweep.insight.stored import load_study
    from sweep.store.connection import storage_url
    from sweep.store.storage import Store

    url = storage_url(storage)
    if output is not None:
        from sweep.insight.page import check_page

        check_page(output, url, replace=replace)
    with Store.open(url) as store:
        stored = load_study(store, study)
    if output is not None:
        _draw(stored, output, draw_map=draw_map)
    elif draw_map:
        _print_map(stored, form)
    else:
        _print_path(stored, form)


def _draw(study: StoredStudy, output: Path, *, draw_map: bool) -> None:
    from sweep.insight.page import write_page

    if draw_map:
        from sweep.insight.stability import stability_map
        from sweep.insight.stability_figure import stability_figure

        figure, title = stability_figure(stability_map(study)), "where training explodes"
        missing = "has no trial for a map"
    else:
        from sweep.insight.figures import cv_curve

        figure, title = cv_curve(study), "score against lambda"
        missing = "has no COMPLETE trial with a lambda"
    if figure is None:
        raise RequestError(f"Study {study.name!r} {missing}: there is nothing to draw.")
    write_page(figure, output, f"{study.name}: {title}")
    print_text(f"Wrote {output}")


def _print_path(study: StoredStudy, form: Format) -> None:
    from sweep.insight.path import COLUMNS, lambda_path, path_lines

    steps = [step.as_dict() for step in lambda_path(study)]
    names = list(COLUMNS)
    if form is Format.TABLE:
        # What no trial has (a reason, a mark) is no column of a table.
        kept = {name for name in names for step in steps if step[name] is not None}
        names = [name for name in names if name in kept]
    rows = [[step[name] for name in names] for step in steps]
    print_rows(names, rows, form, empty=NOTHING, spare=("reason", "nonzero", "state"))
    if form is Format.TABLE and rows:
        print()
        for line in path_lines(study):
            print_text(line, indent=2)


NOTHING = "No trial has finished yet."


def _print_map(study: StoredStudy, form: Format) -> None:
    from sweep.insight.stability import COLUMNS, stability_map

    found = stability_map(study)
    if form is not Format.TABLE or not found.panels:
        rows = [list(row.values()) for row in found.rows()]
        nothing = f"Nothing to map: {_left_out(found)}." if found.left_out else NOTHING
        print_rows(COLUMNS, rows, form, empty=nothing)
        return
    n_diverged = sum(panel.n_diverged for panel in found.panels)
    for panel in found.panels:
        _print_panel(found, panel, whole=n_diverged > 0)
    if n_diverged:
        print_text(
            "Columns: learning_rate, rows: lambda, each from the value shown up to the next. "
            "In them: the share that diverged, of so many trials."
        )
    if found.left_out:
        print_text(f"Left out: {_left_out(found)}.")
    print_text(found.bound_text())


def _print_panel(found: StabilityMap, panel: Panel, *, whole: bool) -> None:
    """How many trials diverged; if `whole`, with a row a bin of lambdas, a column one of rates."""
    trials = counted(len(panel.points), "trial")
    print_text(f"{panel.regularizer}, {panel.clipping}: {panel.n_diverged} of {trials} diverged")
    if not whole:
        return
    cells, across = found.cells(panel), len(found.rate_bins)
    header = ["lambda" if panel.has_lambda else "", *map(_from, found.rate_bins)]
    rows: list[list[str]] = []
    for start in range(0, len(cells), across):
        row = cells[start : start + across]
        texts = [
            f"{100 * cell.diverged / cell.trials:.0f}% of {cell.trials}" if cell.trials else "-"
            for cell in row
        ]
        rows.append([_from(row[0].lams) if row[0].lams else "", *texts])
    # Of what does not fit a terminal the highest rates matter most: there training explodes.
    print_rows(header, rows, Format.TABLE, spare=header[1:])
    print()


def _left_out(found: StabilityMap) -> str:
    return (
        f"{counted(found.left_out, 'trial')} that failed without diverging, or without a "
        "learning_rate above 0"
    )


def _from(bounds: Bin) -> str:
    return number(bounds[0], 3 if bounds[0] == bounds[1] else 2)
