"""Before a run: `sweep check` and `sweep schema`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweep.cli.options import Device, DeviceOption, FileArgument, Format, SetOption
from sweep.cli.output import as_json

if TYPE_CHECKING:
    from sweep.search.estimate import Estimate
    from sweep.search.plan import Plan


def check(
    file: FileArgument,
    overrides: SetOption = None,
    form: Annotated[
        Format, typer.Option("--format", help="How to print: as text (table), JSON, or CSV.")
    ] = Format.TABLE,
    no_time: Annotated[
        bool,
        typer.Option("--no-time", help="Train nothing, and leave out how long a run will take."),
    ] = False,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Check a study file and show the plan: data, folds, members, model size, memory, knobs, time.

    The first trials train for a second or two, to tell how long a run takes here. Nothing is
    stored.

    \b
    Example:
      sweep check studies/digits_mlp.yaml --set train.epochs=5
    """
    from sweep.spec import load_spec

    # A mistake in the file is said before all that trains is imported.
    loaded = load_spec(file, overrides or [])
    from sweep.search.plan import make_plan

    with nullcontext() if no_time else _progress():
        plan = make_plan(loaded, timed=not no_time, device=device.value)
    if form is Format.JSON:
        print(as_json(plan.as_dict()))
        return
    from sweep.cli.output import print_facts, print_rows

    facts = _facts(plan)
    if form is Format.CSV:
        print_rows(["what", "value"], facts, form)
    else:
        print_facts(facts)


def _progress() -> AbstractContextManager[Any]:
    """Says on a terminal what takes a few seconds."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("Reading the data, and training for a second or two …")


def _facts(plan: Plan) -> list[tuple[str, str]]:
    """The plan in words, a line a question."""
    from sweep.insight.words import number, value_text
    from sweep.spec.exact import EXACT

    train, test = zip(*plan.folds, strict=True)
    shape = " x ".join(map(str, plan.input_shape))
    facts = [("study", plan.study), ("data", f"{plan.source}: {plan.rows:,} rows of {shape}")]
    if plan.classes is not None:
        shown = [f"{name} ({count})" for name, count in list(plan.classes.items())[:12]]
        more = f", and {len(plan.classes) - 12} more" if len(plan.classes) > 12 else ""
        facts.append(("classes", f"{len(plan.classes)}: {', '.join(shown)}{more}"))
    if plan.target is not None:
        low, high, deviation = map(number, plan.target)
        facts.append(("target", f"{low} to {high}, standard deviation {deviation}"))
    repeats = f"{len(plan.folds)}, {plan.fold_kind}"
    facts.append(("folds", f"{repeats}: train on {_span(train)} rows, score {_span(test)}"))
    facts.append(("score", f"{plan.score}, {plan.direction}"))
    cells = "" if plan.grid is None else f" (the grid has {plan.grid:,})"
    facts.append(
        ("trials", f"{plan.trials:,}{cells}; sampler {plan.sampler}, pruner {plan.pruner}")
    )
    facts.append(
        ("members", f"{plan.members:,} = {plan.trials:,} trials x {len(plan.folds)} folds")
    )
    exact = plan.fixed.get("optimizer") == EXACT
    until = ", or fewer: the exact solver stops at the optimum" if exact else ""
    facts.append(("steps", f"{_span(plan.steps)} a member{until}"))
    facts.append(("model", f"{_span(plan.parameters)} parameters"))
    at_once = f"with {plan.slots} members in training at once"
    on = "" if plan.device == "cpu" else f", on {plan.device}"
    facts.append(("memory", f"about {_bytes(plan.memory)}, {at_once}{on}"))
    if plan.time is not None:
        facts += [("time", text) for text in _time(plan.time)]
    facts += [("varies", f"{name}: {text}") for name, text in plan.varies.items()]
    fixed = ", ".join(f"{name} {value_text(value)}" for name, value in plan.fixed.items())
    facts.append(("fixed", fixed or "nothing"))
    return facts + [("notice", text) for text in plan.notices]


def _time(time: Estimate) -> list[str]:
    """How long a run takes, with which engine, and what that is made of."""
    from sweep.insight.words import duration

    if time.seconds is None or time.training is None:
        return [f"not known: {time.engine}"]
    most = "at most about" if time.at_most else "about"
    parts = [f"training {duration(time.training)}"]
    inside = [("scoring", time.scoring), ("compiling", time.compiling)]
    shown = [f"{name} {duration(seconds)}" for name, seconds in inside if seconds >= 0.5]
    if shown:
        parts[0] += f" ({', '.join(shown)})"
    parts += [f"choosing {duration(time.choosing)}", f"start {duration(time.start)}"]
    made_of = ", ".join(parts)
    if time.step is not None:
        made_of += f"; measured {_small(time.step)} an update of one model"
    return [f"{most} {duration(time.seconds)}: {time.engine}", made_of]


def _small(seconds: float) -> str:
    """45 µs, 6.1 ms, 2.3 s."""
    from sweep.insight.words import number

    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * size:
            return f"{number(seconds / size, 2)} {unit}"
    return f"{number(seconds, 2)} s"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6)):,} MB"


def schema() -> None:
    """Print the JSON Schema of a study file, with which editors complete and check it.

    \b
    Example:
      sweep schema > study.schema.json
    """
    from sweep.spec.schema import json_schema

    print(as_json(json_schema()))
