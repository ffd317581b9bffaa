"""The summary of a study as `sweep run` and `sweep best` print it."""

from __future__ import annotations

import csv
import sys

from sweep.cli.options import Format
from sweep.cli.output import as_json, print_rows, print_text
from sweep.insight.summary import Summary
from sweep.insight.words import number, params_text

COLUMNS = (
    "regularizer",
    "score",
    "score_se",
    "lambda",
    "lambda_1se",
    "nonzero",
    "trial",
    "trials",
    "diverged",
)


HEADER = ("regularizer", "score", "± se", "lambda", "lambda.1se", "nonzero", "trial", "diverged")


def print_summary(summary: Summary, form: Format, storage: str | None = None) -> None:
    """Sentences around a table of regularizers; as CSV that table alone, as JSON everything."""
    if form is Format.JSON:
        print(as_json(summary.as_dict()))
    elif form is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([["" if v is None else v for v in row] for row in rows(summary)])
    else:
        _print_text(summary, storage)


def rows(summary: Summary) -> list[list[object]]:
    """A row a regularizer, the best first."""
    return [
        [
            choice.regularizer,
            choice.best.score if choice.best else None,
            choice.best.score_se if choice.best else None,
            choice.best.lam if choice.best else None,
            choice.strongest.lam if choice.strongest else None,
            choice.best.nonzero if choice.best else None,
            choice.best.number if choice.best else None,
            choice.n_trials,
            choice.n_diverged,
        ]
        for choice in summary.choices
    ]


def _table(summary: Summary) -> list[list[object]]:
    """The same for reading: as many digits as the standard error leaves meaning to."""
    table: list[list[object]] = []
    for choice in summary.choices:
        best, strongest = choice.best, choice.strongest
        diverged = f"{choice.n_diverged} of {choice.n_trials}"
        if best is None:
            table.append([choice.regularizer, None, None, None, None, None, None, diverged])
            continue
        nonzero = None if best.nonzero is None else round(best.nonzero)
        table.append(
            [
                choice.regularizer,
                number(best.score),
                number(best.score_se, 2),
                number(best.lam, 3),
                number(strongest.lam if strongest else None, 3),
                nonzero,
                best.number,
                diverged,
            ]
        )
    return table


def _print_text(summary: Summary, storage: str | None) -> None:
    print(f"{summary.study}: {_counts(summary)}")
    best = summary.best
    if best is None:
        print_text(summary.divergence_text())
        return
    print_text(f"Best: {summary.best_text()}")
    print_text(f"  {params_text(best.params)}", indent=2)
    print()
    print_rows(HEADER, _table(summary), Format.TABLE)
    print()
    strongest = summary.choices[0].strongest
    if strongest is not None and strongest.number != best.number:
        print_text(
            f"Strongest lambda within one standard error of the best: {number(strongest.lam)} "
            f"({summary.score} {number(strongest.score)}, trial {strongest.number})."
        )
    print_text(summary.verdict())
    if summary.comparisons:
        print_text(f"  {summary.method()}", indent=2)
    if summary.optimistic:
        print_text("Early stopping looked at the scored folds, so every score is optimistic.")
    print_text(summary.divergence_text())
    print("Look further:")
    for command in summary.commands(storage):
        print(f"  {command}")


def _counts(summary: Summary) -> str:
    trials = "1 trial" if summary.n_trials == 1 else f"{summary.n_trials} trials"
    parts = [trials, f"{summary.n_complete} complete"]
    if summary.n_pruned:
        parts.append(f"{summary.n_pruned} pruned")
    if summary.failed:
        parts.append(f"{summary.failed.total()} failed")
    return ", ".join(parts)
