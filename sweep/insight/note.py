"""A study in a page: the note that its readers find in the Optuna dashboard, kept up to date."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sweep.errors import RequestError, SweepError
from sweep.insight.figures import cv_curve
from sweep.insight.selection import Choice
from sweep.insight.stability import stability_map
from sweep.insight.stability_figure import stability_figure
from sweep.insight.stored import StoredStudy, is_diverged, snapshots
from sweep.insight.summary import Summary, summarize
from sweep.insight.words import number, params_text
from sweep.search.status import Observer, Status
from sweep.store.note import write_figure, write_note
from sweep.store.storage import Store

SECONDS_BETWEEN_NOTES = 30.0
SHARE = 0.05
"""Of the time between two notes, writing one takes no more: of thousands of trials it takes
seconds, in which no trials are chosen."""
HEADING = "### Kept up to date by sweep"
"""What stands above it in a note is somebody's own, and stays."""


class Notes:
    """An observer that keeps the note of the study that is run, and passes everything on.

    The note is written at the first update of a new study (one that goes on has the note of the
    run before), at most every 30 s during the run when something has finished, and on leaving. A
    note that cannot be written is reported once and stops nothing.
    """

    def __init__(
        self, url: str, observer: Observer, seconds: float = SECONDS_BETWEEN_NOTES
    ) -> None:
        self.url, self.observer, self.seconds = url, observer, seconds
        self._store: Store | None = None
        self._snapshots: Iterator[StoredStudy] | None = None
        self._study = ""
        self._done = -1
        self._at = -math.inf  # the monotonic clock may have begun just now
        self._took = 0.0
        self._failed = False

    def notice(self, text: str) -> None:
        self.observer.notice(text)

    def update(self, status: Status) -> None:
        self.observer.update(status)
        self._study = status.study
        began = time.monotonic()
        if self._done < 0 and status.done:
            self._done, self._at = status.done, began
        apart = max(self.seconds, self._took / SHARE)
        if status.done != self._done and began - self._at >= apart:
            self._done = status.done
            self._write()
            self._at = time.monotonic()
            self._took = self._at - began

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._study:
            # After an error that one is told, and nothing of a note.
            self._write(told=kind is None)
        if self._store is not None:
            self._store.close()

    def _write(self, *, told: bool = True) -> None:
        if self._failed:
            return
        try:
            if self._store is None:
                self._store = Store.open(self.url)
                self._snapshots = snapshots(self._store, self._study)
            assert self._snapshots is not None
            study = next(self._snapshots)
            save_note(self._store, study)
            save_figures(self._store, study)
        except SweepError as error:
            self._failed = True
            if told:
                self.observer.notice(f"The study's note for the dashboard is not kept: {error}")


def save_note(store: Store, study: StoredStudy) -> None:
    """Writes the study's note as it should be now; what stands above the heading stays."""
    study_id = store.study_id(study.name)
    text = note_text(study, store.counts(study_id))
    write_note(store, study_id, lambda before: with_text(before, text))


def save_figures(store: Store, study: StoredStudy) -> None:
    """Writes the study's figures as they should be now, for the dashboard's first page.

    The stability map is drawn once a trial has diverged, if learning rates differ.
    """
    study_id = store.study_id(study.name)
    figure = cv_curve(study)
    if figure is not None:
        write_figure(store, study_id, "cv-curve", figure.to_json())
    if any(map(is_diverged, study.trials)):
        try:
            figure = stability_figure(stability_map(study), fixed=False)
        except RequestError:
            return
        if figure is not None:
            write_figure(store, study_id, "stability-map", figure.to_json())


def with_text(before: str, text: str) -> str:
    """The note `before`, with what sweep has written of it replaced by `text`."""
    own, _, _ = before.partition(HEADING)
    return f"{own.rstrip()}\n\n{text}" if own.strip() else text


def note_text(study: StoredStudy, counts: Mapping[str, int]) -> str:
    """The note in Markdown: what was found, what failed, on which data, how to run it again."""
    summary = summarize(study)
    now = datetime.now(UTC)
    parts = [HEADING, f"{_counts(counts)} ({now:%Y-%m-%d %H:%M} UTC)"]
    if summary.best is not None:
        best = f"{summary.best_text()}, {params_text(summary.best.params)}"
        parts += [f"**Best:** {_plain(best)}", _table(summary), _plain(summary.verdict())]
    if summary.optimistic:
        parts.append("Early stopping looked at the scored folds, so every score is optimistic.")
    if summary.failed:
        parts.append(f"**Failures.** {_plain(summary.divergence_text())}")
        parts.append(_failures(summary))
    parts += [f"**{name}:** {text}" for name, text in _origin(study, summary) if text]
    return "\n\n".join(parts) + "\n"


def _counts(counts: Mapping[str, int]) -> str:
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "in training"}
    shown = [f"{counts.get(key, 0)} {name}" for key, name in names.items() if counts.get(key)]
    total = sum(counts.values())
    return f"{total} {'trial' if total == 1 else 'trials'}: {', '.join(shown) or 'none yet'}"


def _table(summary: Summary) -> str:
    lines = [
        f"| regularizer | {summary.score} | ± se | lambda | lambda.1se | trial | diverged |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {' | '.join(_cells(choice))} |" for choice in summary.choices]
    return "\n".join(lines)


def _cells(choice: Choice) -> list[str]:
    best, strongest = choice.best, choice.strongest
    return [
        _plain(choice.regularizer),
        number(best.score if best else None),
        number(best.score_se if best else None, 2),
        number(best.lam if best else None, 3),
        number(strongest.lam if strongest else None, 3),
        str(best.number) if best else "-",
        f"{choice.n_diverged} of {choice.n_trials}",
    ]


def _failures(summary: Summary) -> str:
    lines = ["| reason | trials |", "|---|---:|"]
    lines += [f"| {_plain(reason)} | {n} |" for reason, n in summary.failed.most_common()]
    return "\n".join(lines)


def _origin(study: StoredStudy, summary: Summary) -> Iterator[tuple[str, str]]:
    """Data, folds, how to run it again, and with what it was run."""
    attrs, name = study.attrs, shlex.quote(study.name)
    spec: dict[str, Any] = attrs.get("spec") or {}
    data: dict[str, Any] = attrs.get("data") or {}
    if data:
        source = (spec.get("data") or {}).get("source")
        shape = " × ".join(str(n) for n in data.get("features") or [])
        text = f"{_code(str(source))}, " if source else ""
        text += f"{data.get('rows')} rows" + (f" of {shape} features" if shape else "")
        yield "Data", f"{text}, sha256 {_code(str(data.get('sha256'))[:16])}"
    validation = spec.get("cross_validation") or {}
    if validation:
        folds = len(data.get("folds") or []) or validation.get("folds")
        seed = validation.get("seed")
        seed = spec.get("seed") if seed is None else seed
        hashes = ", ".join(str(each)[:8] for each in data.get("folds") or [])
        text = f"{folds}, {validation.get('kind')}, seed {seed}"
        yield "Folds", f"{text} ({_code(hashes)})" if hashes else text
    if attrs.get("command"):
        yield "Run it again", _code(str(attrs["command"]))
    if summary.best is not None:
        yield "Train the best trial again", _code(f"sweep replay {name} {summary.best.number}")
    if attrs.get("runs"):
        yield "Run with", _plain(_run_text(attrs["runs"][-1]))


def _run_text(run: Mapping[str, Any]) -> str:
    versions = run.get("versions") or {}
    parts = [f"{key} {versions[key]}" for key in ("sweep", "torch", "optuna") if versions.get(key)]
    parts += [str(run[key]) for key in ("device", "engine") if run.get(key)]
    git = run.get("git") or {}
    if git.get("commit"):
        changed = " with changes" if git.get("dirty") else ""
        parts.append(f"commit {git['commit'][:10]}{changed}")
    return ", ".join(parts)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"
