"""What a running sweep shows: a live display on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sweep.insight.words import duration, number, params_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sweep.search.status import Status

SECONDS_BETWEEN_LINES = 5.0


class Display(Protocol):
    """An observer of the search loop, entered before its first word and left after its last."""

    def notice(self, text: str) -> None: ...
    def update(self, status: Status) -> None: ...
    def __enter__(self) -> Display: ...
    def __exit__(self, *error: object) -> None: ...


def make_display(stream: TextIO, *, quiet: bool) -> Display:
    """The display that suits `stream`; a quiet one says nothing but notices, on stderr."""
    if quiet:
        return Quiet()
    return Live(stream) if stream.isatty() else Lines(stream)


class Quiet:
    """Only what a user must know."""

    def notice(self, text: str) -> None:
        print(f"Notice: {text}", file=sys.stderr)

    def update(self, status: Status) -> None:
        pass

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Lines:
    """A line every few seconds, when something has changed."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._shown: tuple[int, float] | None = None
        self._engine = ""
        self._at = 0.0
        self._closed = False

    def notice(self, text: str) -> None:
        self._say(f"Notice: {text}")

    def update(self, status: Status) -> None:
        now = status.done, status.under_way
        if self._shown is None:
            self._say(f"{status.study}: {status.total} trials")
            self._shown, self._at = now, time.monotonic()
            return
        # How many slots are in use changes all the time.
        engine = re.sub(r"\d+ slots", "", status.engine)
        if "," in engine and engine != self._engine:
            self._engine = engine
            self._say(f"Engine: {status.engine}")
        ended = status.done >= status.total and not status.running
        if now == self._shown or not (ended or self._is_time()):
            return
        is_waiting = status.done == self._shown[0]
        self._shown, self._at = now, time.monotonic()
        parts = [f"{status.done}/{status.total} trials: {outcomes(status)}"]
        if is_waiting:
            parts[0] += f", {in_training(status)}"
        if status.best is not None:
            parts.append(f"best {best_text(status)}")
        parts.append(pace(status))
        self._say("; ".join(parts))

    def _is_time(self) -> bool:
        return time.monotonic() - self._at >= SECONDS_BETWEEN_LINES

    def _say(self, text: str) -> None:
        if self._closed:
            return
        try:
            print(text, file=self.stream, flush=True)
        except BrokenPipeError:
            # Nobody listens any more; the trials are still worth having.
            self._closed = True

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Live:
    """A few lines that rich redraws in place, and takes away at the end."""

    def __init__(self, stream: TextIO) -> None:
        import rich.live
        from rich.console import Console

        self.status: Status | None = None
        self._console = Console(file=stream, highlight=False)
        self._live = rich.live.Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=4,
            transient=True,
        )

    def notice(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(f"Notice: {text}"))

    def update(self, status: Status) -> None:
        self.status = status

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def render(self) -> RenderableType:
        """The lines as they are now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        status = self.status
        if status is None:
            return Text("Reading the data and starting …", style="dim")

        def line(text: str, style: str = "") -> Text:
            return Text(text, style=style, no_wrap=True, overflow="ellipsis")

        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            ProgressBar(total=max(1, status.total), completed=status.done),
            Text(f"{status.done}/{status.total} · {pace(status)}"),
        )
        best = "no score yet" if status.best is None else best_text(status)
        return Group(
            line(" · ".join(filter(None, (status.study, status.engine))), "bold"),
            bar,
            line(f"{outcomes(status)} · {in_training(status)}"),
            Text(f"best: {best}"),
        )


def in_training(status: Status) -> str:
    """`32 in training (45% done)`"""
    text = f"{status.running} in training"
    if status.running and status.under_way:
        text += f" ({status.under_way / status.running:.0%} done)"
    return text


def outcomes(status: Status) -> str:
    """`61 complete, 4 pruned, 22 failed (15 gradient_explosion, 7 nonfinite_loss)`"""
    parts = [f"{status.complete} complete"]
    if status.pruned:
        parts.append(f"{status.pruned} pruned")
    failed = status.failed.copy()
    if failed:
        reasons = ", ".join(f"{n} {reason}" for reason, n in failed.most_common())
        parts.append(f"{failed.total()} failed ({reasons})")
    return ", ".join(parts)


def best_text(status: Status) -> str:
    """`log_loss 0.0912 ± 0.0061, trial 54: regularizer l1, lambda 3.2e-05`"""
    best = status.best
    assert best is not None
    attrs: Mapping[str, Any] = best.user_attrs
    se = attrs.get("score_se")
    error = "" if se is None else f" ± {number(se, 2)}"
    params = params_text(best.params)
    return f"{status.score} {number(best.value)}{error}, trial {best.number}: {params}"


def pace(status: Status) -> str:
    """`3.8 trials/s, 23 s, 30 s left`"""
    text = duration(status.seconds)
    if status.done > status.done_before:
        text = f"{status.trials_per_second:.2g} trials/s, {text}"
    left = status.seconds_left
    if left is not None and status.done < status.total:
        text += f", {duration(left)} left"
    return text
