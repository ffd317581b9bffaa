"""The verbs that read the database: studies, trials, folds, best, sql."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

import typer

from sweep.cli.options import (
    Format,
    FormatOption,
    StorageOption,
    StudyArgument,
    TrialOption,
    given,
)
from sweep.cli.output import print_rows
from sweep.errors import RequestError


def studies(storage: StorageOption = None, form: FormatOption = Format.TABLE) -> None:
    """List the studies in the database, with their trials by state and best score.

    \b
    Example:
      sweep studies --storage sqlite:///sweep.db
    """
    from sweep.store import queries

    if storage is None and _nothing_yet():
        columns, rows = ["study"], []
    else:
        found = queries.studies(_url(storage))
        columns, rows = found.columns, found.rows
    spare = ("started", "direction", "waiting", "running", "pruned", "finished")
    print_rows(columns, rows, form, empty="No studies yet. Make one: sweep run FILE", spare=spare)


def trials(
    study: StudyArgument,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="SQL",
            show_default=False,
            help="An SQL condition, as in \"state = 'FAIL' and learning_rate > 1\".",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="COLUMN",
            show_default=False,
            help="Sort by this column; -COLUMN starts with the greatest.  Default: trial.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="A,B,...",
            show_default=False,
            help="Columns to show. Default in a table: those that differ between trials.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=0, show_default=False, help="At most so many."),
    ] = None,
    storage: StorageOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List a study's trials: state, score, parameters, why they failed, seconds.

    \b
    Example:
      sweep trials digits-mlp --where "state = 'COMPLETE'" --sort score --limit 10
    """
    from sweep.store import queries

    asked = [name.strip() for name in columns.split(",")] if columns else None
    found = queries.trials(_url(storage), study, where=where, sort=sort, columns=asked, limit=limit)
    rows, names = found.rows, found.columns
    if form is Format.TABLE and asked is None:
        names, rows = _telling(
            names,
            rows,
            always=("trial", "state", "score"),
            first=("regularizer", "lambda", "learning_rate"),
        )
    print_rows(names, rows, form, empty="No such trials.", spare=("seconds", "score_se"))


def folds(
    study: StudyArgument,
    trial: TrialOption = None,
    storage: StorageOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the fold scores of a study's trials.

    \b
    Example:
      sweep folds digits-mlp --trial 54
    """
    from sweep.store import queries

    found = queries.folds(_url(storage), study, trial)
    names, rows = found.columns, found.rows
    if form is Format.TABLE:
        names, rows = _telling(names, rows, always=("trial", "fold", "score"))
    print_rows(names, rows, form, empty="No fold scores: only COMPLETE trials have them.")


def best(
    study: StudyArgument, storage: StorageOption = None, form: FormatOption = Format.TABLE
) -> None:
    """Show what a study found: the best trial, each regularizer's lambda, and how sure that is.

    \b
    Example:
      sweep best digits-mlp
    """
    from sweep.cli.summary import print_summary
    from sweep.insight.stored import load_study
    from sweep.insight.summary import summarize
    from sweep.store.storage import Store

    with Store.open(_url(storage)) as store:
        print_summary(summarize(load_study(store, study)), form, given(storage))


def sql(
    query: Annotated[
        str, typer.Argument(metavar="SQL", help="One SELECT, WITH, VALUES or EXPLAIN statement.")
    ],
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="NAME=VALUE",
            show_default=False,
            help="The value of :NAME in the statement: a number, null, or text (a number in quotes "
            "is text); may be repeated.",
        ),
    ] = None,
    storage: StorageOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Ask the database anything; it cannot be changed this way.

    Views: sweep_studies, sweep_trials, sweep_folds, sweep_failures.

    \b
    Example:
      sweep sql "SELECT regularizer, min(score) FROM sweep_trials
                 WHERE study = :study GROUP BY regularizer" --param study=digits-mlp
    """
    from sweep.store import queries

    found = queries.run_sql(_url(storage), query, dict(map(_parameter, param or [])))
    print_rows(found.columns, found.rows, form)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise RequestError(f"--param {text}: write NAME=VALUE, as in study=digits-mlp.")
    return name.strip(), _value(value)


_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def _value(text: str) -> str | int | float | None:
    """null, a number or a "quoted text" as JSON writes them; any other text as it stands."""
    if text == "null" or _NUMBER.fullmatch(text) or re.fullmatch(r'".*"', text, re.DOTALL):
        try:
            found = json.loads(text)
        except ValueError:
            return text
        if not isinstance(found, float) or math.isfinite(found):
            return found  # type: ignore[no-any-return]
    return text


def _url(storage: str | None) -> str:
    from sweep.store.connection import storage_url

    return storage_url(storage)


def _nothing_yet() -> bool:
    """Whether nobody named a database and the default one has not been made."""
    import os
    from pathlib import Path

    from sweep.store.connection import DEFAULT_URL

    default = Path(DEFAULT_URL.removeprefix("sqlite:///"))
    return not os.environ.get("SWEEP_STORAGE") and not default.exists()


def _telling(
    names: list[str],
    rows: list[tuple[Any, ...]],
    *,
    always: tuple[str, ...],
    first: tuple[str, ...] = (),
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns that tell rows apart: those of `always`, why a trial failed, `first`, the rest.

    A failure's reason stands beside the state, since the one explains the other.
    """
    ahead = (*always, "failure_reason", "score_se", *first)
    hidden = {"study", "failure_kind", "started"}
    kept = [
        i
        for i, name in enumerate(names)
        if name in always or (name not in hidden and len({repr(row[i]) for row in rows}) > 1)
    ]
    kept.sort(key=lambda i: ahead.index(names[i]) if names[i] in ahead else len(ahead))
    return [names[i] for i in kept], [tuple(row[i] for i in kept) for row in rows]
