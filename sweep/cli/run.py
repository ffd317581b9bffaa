"""`sweep run`."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweep.cli.deferred import defer
from sweep.cli.display import Display, make_display
from sweep.cli.options import (
    Device,
    DeviceOption,
    FileArgument,
    Format,
    FormatOption,
    SetOption,
    StorageOption,
    given,
)

if TYPE_CHECKING:
    from sweep.cli.workers import Workers
    from sweep.search.loop import Ended
    from sweep.search.status import Status


class EngineName(StrEnum):
    """Who trains."""

    AUTO = "auto"
    LANES = "lanes"
    REFERENCE = "reference"


def _bytes(text: str) -> int:
    """4GB, 512MB, 1.5 GiB, or a number of bytes."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(?:([KMGT])(i?)B?|B)?\s*", str(text), re.I)
    if found is None or float(found[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is no size; give one such as 4GB or 512MB.")
    power = " KMGT".index(found[2].upper()) if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def run(
    file: FileArgument,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            min=1,
            metavar="N",
            show_default=False,
            help="Trials in all, earlier ones included. Default: the file's.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0.0,
            metavar="SECONDS",
            show_default=False,
            help="Stop after so many seconds; run again to go on.",
        ),
    ] = None,
    overrides: SetOption = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="N", help="Processes in all.")
    ] = 1,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start over under a new name (STUDY-2, ...); nothing is deleted."
        ),
    ] = False,
    engine: Annotated[
        EngineName,
        typer.Option(
            "--engine", help="Train many models at once (lanes), or one at a time (reference)."
        ),
    ] = EngineName.AUTO,
    device: DeviceOption = Device.AUTO,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory",
            parser=_bytes,
            metavar="SIZE",
            show_default=False,
            help="Memory that batched training may take, as 4GB or 512MB. "
            "Default: half of what is free.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no summary.")] = False,
    storage: StorageOption = None,
    form: FormatOption = Format.TABLE,
    follow: Annotated[bool, typer.Option("--stop-with-parent", hidden=True)] = False,
) -> int:
    """Run a study, or continue it up to its number of trials.

    Ctrl-C stops it: finished trials are kept, and the same command goes on.

    \b
    Example:
      sweep run studies/digits_mlp.yaml --trials 50 --set train.epochs=10
    """
    from sweep.cli.workers import Workers, share_cores, stop_with_parent
    from sweep.spec import load_spec
    from sweep.store.connection import storage_url

    if follow:
        stop_with_parent()
    loaded = load_spec(file, overrides or [])
    url = storage_url(storage)
    asked = _arguments(file, trials, overrides, engine, device, memory)
    others = Workers(asked, url, workers - 1)
    if workers > 1:
        share_cores(workers)
    stream = sys.stdout if form is Format.TABLE else sys.stderr
    with make_display(stream, quiet=quiet) as display:
        # scikit-learn imports it, for half a second, and a sweep does without.
        defer("scipy.stats", ["rankdata"])
        from sweep.insight.note import Notes
        from sweep.search.loop import run_study

        starting = _Starting(display, others)
        # A worker's note is its parent's to keep.
        notes = nullcontext(starting) if follow else Notes(url, starting)
        try:
            with notes as observer:
                ended = run_study(
                    loaded,
                    url,
                    trials=trials,
                    timeout=timeout,
                    fresh=fresh,
                    engine=engine.value,
                    memory=memory,
                    device=device.value,
                    observer=observer,
                )
        finally:
            for problem in others.stop():
                display.notice(problem)
    return _end(ended, url, form, quiet, timeout, given(storage))


class _Starting:
    """Passes everything on to the display; the study is in the database at the first update."""

    def __init__(self, display: Display, others: Workers) -> None:
        self.display, self.others = display, others

    def notice(self, text: str) -> None:
        self.display.notice(text)

    def update(self, status: Status) -> None:
        self.others.start(status.study)
        self.display.update(status)


def _arguments(
    file: str,
    trials: int | None,
    overrides: list[str] | None,
    engine: EngineName,
    device: Device,
    memory: int | None,
) -> list[str]:
    arguments = [str(Path(file)), "--engine", engine.value, "--device", device.value]
    if memory is not None:
        arguments += ["--memory", str(memory)]
    if trials is not None:
        arguments += ["--trials", str(trials)]
    for override in overrides or []:
        arguments += ["--set", override]
    return arguments


def _end(
    ended: Ended,
    url: str,
    form: Format,
    quiet: bool,
    timeout: float | None,
    storage: str | None,
) -> int:
    """Says how it ended; returns the exit code."""
    status = ended.status
    if ended.stopped_by is not None:
        print(
            f"Stopped: {status.done} of {status.total} trials are finished and kept, those in "
            "training are given back. The same command goes on.",
            file=sys.stderr,
            flush=True,
        )
        return 128 + ended.stopped_by
    if not quiet:
        from sweep.cli.summary import print_summary
        from sweep.insight.stored import load_study
        from sweep.insight.summary import summarize
        from sweep.store.storage import Store

        if timeout is not None and status.done < status.total:
            print(
                f"Time is up: {status.done} of {status.total} trials are finished; "
                "run the same command again to go on.",
                file=sys.stderr,
            )
        with Store.open(url) as store:
            summary = summarize(load_study(store, ended.study))
        if summary.n_complete or form is not Format.TABLE:
            print_summary(summary, form, storage)
    if status.complete == 0 and status.done >= status.total:
        print(f"Error: {_nothing_complete(status, url)}", file=sys.stderr)
        return 3
    return 0


def _nothing_complete(status: Status, url: str) -> str:
    """What failed most, and what to try."""
    name, quoted = status.study, shlex.quote(status.study)
    if not status.done:
        return f"No trial of {name!r} has finished. Give it more time."
    if not status.failed:
        return f"No trial of {name!r} completed: all {status.done} were pruned. Try: pruner: none."
    reason, n = status.failed.most_common(1)[0]
    text = f"No trial of {name!r} completed: {n} of {status.done} failed with {reason}."
    if reason in DIVERGENCES:
        return (
            f"{text} Try smaller learning rates (train.learning_rate), or clip_norm: 1.0; "
            f"see: sweep diverged {quoted}"
        )
    from sweep.store import queries

    asked = f"state = 'FAIL' AND failure_reason = '{reason}'"
    first = queries.trials(url, name, where=asked, columns=["trial"], limit=1).rows[0][0]
    said = (queries.failure(url, name, first) or {}).get("message") or "nothing"
    return f"{text} Trial {first}: {said.rstrip('.')}. See: sweep diverged {quoted} --trial {first}"


DIVERGENCES = frozenset(
    [
        "nonfinite_loss",
        "nonfinite_gradient",
        "gradient_explosion",
        "loss_explosion",
        "nonfinite_parameter",
        "nonfinite_score",
    ]
)
