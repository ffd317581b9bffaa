"""What looks after a database: `sweep dashboard` and `sweep upgrade`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sweep.cli.options import StorageOption


def dashboard(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")
    ] = 8080,
    allow_edits: Annotated[
        bool,
        typer.Option(
            "--allow-edits/--read-only",
            help="Let readers write notes, rename and delete studies, and end trials.",
        ),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            show_default=False,
            help="Answer requests to this host name too; may be repeated.",
        ),
    ] = None,
    storage: StorageOption = None,
) -> int:
    """Open the Optuna dashboard on the study database, until Ctrl-C.

    It has no access control, so it only reads and only listens to this machine unless told.

    \b
    Example:
      sweep dashboard --port 8081
    """
    from sweep.service.dashboard import serve_dashboard
    from sweep.store.storage import storage_url

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    received = serve_dashboard(
        storage_url(storage), host, port, say, allow_edits=allow_edits, more_hosts=allow_host or ()
    )
    return 128 + received if received else 0


def upgrade(
    storage: StorageOption = None,
    no_copy: Annotated[
        bool, typer.Option("--no-copy", help="Do not copy the database first.")
    ] = False,
) -> None:
    """Bring the tables of an older Optuna up to date, after a copy of the database.

    A Postgres database is copied with pg_dump, and then upgraded with --no-copy.

    \b
    Example:
      sweep upgrade --storage sqlite:///old.db
    """
    from sweep.store.connection import storage_url
    from sweep.store.upgrade import upgrade as bring_up_to_date

    for sentence in bring_up_to_date(storage_url(storage), copy=not no_copy):
        print(sentence)
