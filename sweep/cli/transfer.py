"""The verbs that carry studies: export, import, merge, delete, rename."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sweep.cli.options import StorageOption, StudyArgument
from sweep.cli.output import print_text
from sweep.errors import RequestError


class View(StrEnum):
    """What a file of rows holds."""

    TRIALS = "trials"
    FOLDS = "folds"
    FAILURES = "failures"


YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def export(
    study: StudyArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Its suffix says the form: .csv, .json, .parquet, or .sqlite (.db), a database "
            "of the study alone that Optuna and every SQL client read.",
        ),
    ],
    view: Annotated[
        View, typer.Option("--view", help="The rows to write; a database holds all.")
    ] = View.TRIALS,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the file if it is there.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Write a study to a file: its trials as rows, or all of it as a database.

    \b
    Example:
      sweep export digits-mlp -o trials.parquet
    """
    from sweep.store.connection import storage_url
    from sweep.store.export import export as write

    n = write(storage_url(storage), study, output, view=view.value, replace=replace)
    print_text(f"Wrote {n} {_of(view.value, n)} of {study} to {output}")


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A database of sweep or of plain Optuna: a file or a URL."
        ),
    ],
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]", show_default=False, help="A study there. Default: all of them."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", show_default=False, help="What the study is called here."
        ),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Copy studies from another database into this one; the other is not changed.

    Numbers, states, values and attributes stay as they are. A trial that sweep has in training
    there waits here for the next run; one that plain Optuna has stays RUNNING.

    \b
    Example:
      sweep import postgresql://me@db/studies digits-mlp --name digits-mlp-2
    """
    from sweep.store.connection import shown, storage_url
    from sweep.store.copying import copy_studies, study_names

    origin, target = storage_url(source), storage_url(storage)
    renamed = None
    if study is not None or name is not None:
        wanted = study if study is not None else _only(study_names(origin), shown(origin))
        renamed = {wanted: wanted if name is None else name}
    copied = copy_studies(origin, target, renamed)
    for each in copied:
        called = each.name if each.name == each.source else f"{each.source} as {each.name}"
        print_text(f"Imported {called}: {each.trials} {_of('trials', each.trials)}")
    if not copied:
        print(f"There are no studies in {shown(origin)}.", file=sys.stderr)


def merge(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="Two or more studies of this database.")
    ],
    into: Annotated[
        str, typer.Option("--into", metavar="NAME", help="What the new study is called.")
    ],
    storage: StorageOption = None,
) -> None:
    """Make one study of several that asked the same of the same data; they stay as they are.

    Only trials, concurrency, sampler and enqueue of their study files may differ. The trials are
    numbered on in the order of the studies given, and the new study goes on with the first one's
    file.

    \b
    Example:
      sweep merge digits-mlp digits-mlp-2 --into digits-all
    """
    from sweep.store.connection import storage_url
    from sweep.store.storage import Store
    from sweep.store.studies import merge_studies

    with Store.open(storage_url(storage)) as store:
        copied = merge_studies(store, studies, into)
    first = 0
    for each in copied:
        print_text(
            f"{each.source}: {each.trials} {_of('trials', each.trials)}, numbered from {first}"
        )
        first += each.trials
    print_text(f"Merged into {into}: {first} {_of('trials', first)}")


def delete(
    study: StudyArgument,
    yes: YesOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even while sweep has its trials in training.")
    ] = False,
    storage: StorageOption = None,
) -> int:
    """Delete a study and everything stored of it, for good.

    \b
    Example:
      sweep delete digits-mlp --yes
    """
    from sweep.store.connection import shown, storage_url
    from sweep.store.storage import Store
    from sweep.store.studies import check_deletable, delete_study

    url = storage_url(storage)
    with Store.open(url) as store:
        n = check_deletable(store, study, force=force)
        what = f"{study} with its {n} {_of('trials', n)}"
        if not yes:
            if not sys.stdin.isatty():
                raise RequestError(f"Deleting {what} needs a yes: add --yes. Nothing is deleted.")
            if not typer.confirm(f"Delete {what} from {shown(url)} for good?"):
                print("Nothing is deleted.", file=sys.stderr)
                return 1
        delete_study(store, study, force=force)
    print_text(f"Deleted {what}")
    return 0


def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The study's name now.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its name from now on.")],
    storage: StorageOption = None,
) -> None:
    """Give a study another name; to continue it, change `study:` in its file as well.

    \b
    Example:
      sweep rename digits-mlp digits-mlp-2026
    """
    from sweep.store.connection import storage_url
    from sweep.store.storage import Store
    from sweep.store.studies import rename_study

    with Store.open(storage_url(storage)) as store:
        rename_study(store, old, new)
    print_text(f"Renamed {old} to {new}")


def _only(names: list[str], source: str) -> str:
    if len(names) != 1:
        there = ", ".join(map(repr, names[:10])) or "none"
        raise RequestError(f"--name is for one study. Say which of those in {source}: {there}.")
    return names[0]


def _of(plural: str, n: int) -> str:
    """`trials`, or `trial` of one."""
    return plural[:-1] if n == 1 else plural
