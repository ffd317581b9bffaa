"""Before a run: `sweep check` and `sweep schema`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sweep.cli.options import FileArgument, Format, SetOption
from sweep.cli.output import as_json

if TYPE_CHECKING:
    from sweep.search.plan import Plan


def check(
    file: FileArgument,
    overrides: SetOption = None,
    form: Annotated[
        Format, typer.Option("--format", help="How to print: as text (table), JSON, or CSV.")
    ] = Format.TABLE,
) -> None:
    """Check a study file and show the plan: data, folds, members, model size, memory, knobs.

    Nothing is trained or written.

    \b
    Example:
      sweep check studies/digits_mlp.yaml --set train.epochs=5
    """
    from sweep.search.plan import make_plan
    from sweep.spec import load_spec

    plan = make_plan(load_spec(file, overrides or []))
    if form is Format.JSON:
        print(as_json(plan.as_dict()))
        return
    from sweep.cli.output import print_facts, print_rows

    facts = _facts(plan)
    if form is Format.CSV:
        print_rows(["what", "value"], facts, form)
    else:
        print_facts(facts)


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
    facts.append(
        ("memory", f"about {_bytes(plan.memory)}, with {plan.slots} members in training at once")
    )
    facts += [("varies", f"{name}: {text}") for name, text in plan.varies.items()]
    fixed = ", ".join(f"{name} {value_text(value)}" for name, value in plan.fixed.items())
    facts.append(("fixed", fixed or "nothing"))
    return facts + [("notice", text) for text in plan.notices]


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
