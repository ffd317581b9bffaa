"""The app `sweep`: its verbs, and how every error becomes a sentence and an exit code."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from sweep.cli import queries, transfer
from sweep.cli.cures import cures
from sweep.cli.diverged import diverged
from sweep.cli.output import printable
from sweep.cli.path import path
from sweep.cli.plan import check, schema
from sweep.cli.replay import replay
from sweep.cli.run import run
from sweep.cli.service import dashboard, upgrade
from sweep.errors import SweepError

app = typer.Typer(
    name="sweep",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"sweep {version('sweep')}")
        raise typer.Exit()


@app.callback()
def sweep(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; goes anywhere.")
    ] = False,
) -> None:
    """Which regularizer, how strong (lambda), and how is training kept from exploding?

    \b
    Start with:
      sweep run studies/digits_mlp.yaml
      sweep best digits-mlp
    """


for verb in (
    run,
    check,
    schema,
    queries.studies,
    queries.trials,
    queries.folds,
    diverged,
    queries.best,
    path,
    cures,
    queries.sql,
    replay,
    dashboard,
    upgrade,
    transfer.export,
    transfer.merge,
    transfer.rename,
    transfer.delete,
):
    app.command()(verb)
app.command("import")(transfer.import_)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's own) and returns its exit code.

    Of the process's own it is the end: threads that still work for nobody are not waited for, and
    what was imported is not taken apart, which would take a second.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Whoever started this has closed it. The next file opened is not to take its place.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    # A thread that waits for a core spins; on a busy machine it would keep the others off it.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Half a million objects are made by imports alone, and kept: looking through them for cycles
    # took a fifth of the time to start, and a twentieth of a sweep's.
    gc.set_threshold(50_000, 20, 50)
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if arguments is None:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(given: list[str]) -> int:
    end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:end]
    given = [word for word in given[:end] if word != "--debug"] + given[end:]
    try:
        code = _invoke(given)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python flushes once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        text = printable(" ".join(str(error).split()))
        if isinstance(error, SweepError):
            print(f"Error: {text}", file=sys.stderr)
            return error.exit_code
        name = type(error).__name__
        if _is_out_of_memory(error):
            print(
                "Error: Out of memory, before it was known what would fit: give smaller widths, or "
                f"fewer rows ({name}: {text}).",
                file=sys.stderr,
            )
            return 1
        print(f"unexpected: {name}: {text}; run with --debug", file=sys.stderr)
        return 1


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from sweep.training.memory import is_out_of_memory

    return is_out_of_memory(error)


def _invoke(arguments: list[str]) -> int:
    # Not typer's own main: it exits by itself, and turns a closed pipe into an error.
    command = typer.main.get_command(app)
    try:
        with command.make_context("sweep", arguments) as context:
            code = command.invoke(context)
            return code if isinstance(code, int) else 0
    except Exit as end:
        return end.exit_code
    except Abort:
        return 130
    except TyperException as error:
        show = getattr(error, "show", None)
        if show is not None:
            show()
        return error.exit_code
