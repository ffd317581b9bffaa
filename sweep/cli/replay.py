"""`sweep replay`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sweep.cli.options import (
    Device,
    DeviceOption,
    Format,
    FormatOption,
    StorageOption,
    StudyArgument,
)
from sweep.cli.output import as_json, print_rows, print_text


def replay(
    study: StudyArgument,
    trial: Annotated[
        int, typer.Argument(metavar="TRIAL", min=0, help="The trial's number, from 0.")
    ],
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="MODULE",
            show_default=False,
            help="A module of your own that the study may import; may be repeated. "
            "Also: SWEEP_ALLOW, separated by commas.",
        ),
    ] = None,
    device: DeviceOption = Device.AUTO,
    storage: StorageOption = None,
    form: FormatOption = Format.TABLE,
) -> int:
    """Train a stored trial again, alone, and compare it with what is stored.

    Exit code 0 if it was reproduced, 1 if not.

    \b
    Example:
      sweep replay digits-mlp 54
    """
    from sweep.search.replay import replay as train_again
    from sweep.store.storage import Store, storage_url

    with Store.open(storage_url(storage)) as store:
        found = train_again(store, study, trial, allow or [], device.value)
    columns = ["what", "stored", "replayed"]
    rows = [*found.failure, *found.scores]
    if form is Format.JSON:
        print(
            as_json(
                {
                    "study": study,
                    "trial": trial,
                    "state": found.state,
                    "reproduced": found.agrees,
                    "difference": found.difference,
                    "tolerance": found.tolerance,
                    "compared": [dict(zip(columns, row, strict=True)) for row in rows],
                    "changes": found.changes,
                }
            )
        )
        return 0 if found.agrees else 1
    if form is Format.TABLE:
        rows = [(what, _precise(stored), _precise(now)) for what, stored, now in rows]
    print_rows(columns, rows, form)
    if form is Format.CSV:
        return 0 if found.agrees else 1
    print()
    size = (
        ""
        if found.difference is None or not found.scores
        else (f": largest relative difference {found.difference:.2g}, {found.tolerance:g} allowed")
    )
    if found.agrees:
        print_text(f"Reproduced trial {trial} of {study} ({found.state}){size}.")
        return 0
    why = "; ".join(found.changes[:8]) or "neither packages nor data have changed"
    print_text(f"Not reproduced{size}. Since it was run: {why}.")
    sys.stdout.flush()
    return 1


def _precise(value: object) -> object:
    return f"{value:.9g}" if isinstance(value, float) else value
