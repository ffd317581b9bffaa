"""The options and arguments that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Device(StrEnum):
    """Where models train."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where to train: auto is a GPU (cuda) if there is one.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        show_default=False,
        help="Study database: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE. "
        "Default: SWEEP_STORAGE, else sqlite:///sweep.db.",
    ),
]
FormatOption = Annotated[
    Format, typer.Option("--format", help="How to print: a table, JSON objects, or CSV.")
]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's name, as `sweep studies` lists it.")
]
FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="A study file, such as studies/digits_mlp.yaml.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        show_default=False,
        help="Change a key of the study file, as in train.epochs=5; may be repeated.",
    ),
]
TrialOption = Annotated[
    int | None,
    typer.Option("--trial", metavar="N", min=0, show_default=False, help="Of this trial only."),
]


def given(storage: str | None) -> str | None:
    """The address asked for, to be named in a command; without its password. None: the default."""
    if storage is None:
        return None
    from sweep.store.connection import shown, storage_url

    return shown(storage_url(storage))
