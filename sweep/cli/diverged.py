"""`sweep diverged`."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from sweep.cli.options import Format, FormatOption, StorageOption, StudyArgument, TrialOption
from sweep.cli.output import as_json, cell, print_rows, print_text
from sweep.cli.plot import print_plots
from sweep.errors import RequestError


def diverged(
    study: StudyArgument,
    trial: TrialOption = None,
    storage: StorageOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the trials whose training exploded, or with --trial the whole diagnosis of one.

    \b
    Example:
      sweep diverged digits-mlp --trial 12
    """
    from sweep.store import queries
    from sweep.store.connection import storage_url

    url = storage_url(storage)
    if trial is not None:
        failure = queries.failure(url, study, trial)
        if failure is None:
            raise RequestError(
                f"Trial {trial} of {study!r} did not fail. See: sweep diverged {shlex.quote(study)}"
            )
        _print_diagnosis(study, trial, failure, form)
        return
    found = queries.diverged(url, study)
    names, rows = found.columns, found.rows
    if form is not Format.TABLE:
        print_rows(names, rows, form)
        return
    reasons = queries.failures_by_reason(url, study)
    if len(reasons):
        print_rows(reasons.columns, reasons.rows, form)
        print()
    params = _differing([json.loads(row[names.index("parameters")]) for row in rows])
    order = ["trial", "reason", "fold", "step", "layer", "loss", "grad_norm", "epoch"]
    places = [names.index(name) for name in order]
    table = [
        [*(row[i] for i in places[:3]), *own.values(), *(row[i] for i in places[3:])]
        for row, own in zip(rows, params, strict=True)
    ]
    print_rows(
        [*order[:3], *(params[0] if params else []), *order[3:]],
        table,
        form,
        empty="No trial diverged.",
        spare=("epoch", "layer", "loss", "fold"),
    )
    _print_advice(names, rows)


def _print_advice(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """The advice of the first trial of each reason."""
    trial, reason, advice = (names.index(name) for name in ("trial", "reason", "advice"))
    said = {row[reason]: row for row in reversed(rows) if row[advice]}
    for i, row in enumerate(sorted(said.values(), key=lambda row: row[trial])):
        if i == 0:
            print()
        print_text(f"Trial {row[trial]}, {row[reason]}: {row[advice]}.", indent=2)


def _differing(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each trial the parameters that are not the same in all of them, in one order."""
    names = list(dict.fromkeys(name for each in params for name in each))
    first = [name for name in ("learning_rate", "regularizer", "lambda") if name in names]
    names = [*first, *(name for name in names if name not in first)]
    kept = [n for n in names if len({repr(each.get(n)) for each in params}) > 1]
    return [{name: each.get(name) for name in kept} for each in params]


def _print_diagnosis(study: str, trial: int, failure: dict[str, Any], form: Format) -> None:
    if form is Format.JSON:
        print(as_json({"study": study, "trial": trial, **failure}))
        return
    if form is Format.CSV:
        losses, norms = failure.get("losses") or [], failure.get("grad_norms") or []
        last = failure.get("step") or 0
        steps = range(last - len(losses) + 1, last + 1)
        print_rows(
            ["step", "loss", "grad_norm"], list(zip(steps, losses, norms, strict=True)), form
        )
        return
    print(f"Trial {trial} of {study}: {failure.get('kind')}, {failure.get('reason')}")
    for name in ("message", "advice"):
        if failure.get(name):
            print_text(f"  {failure[name]}", indent=2)
    for name in ("fold", "epoch", "step", "layer", "loss", "grad_norm"):
        print(f"  {name:<10} {cell(failure.get(name))}")
    print_plots(failure, sys.stdout)
