"""`sweep cures`."""

from __future__ import annotations

from sweep.cli.options import Format, FormatOption, StorageOption, StudyArgument
from sweep.cli.output import as_json, print_rows, print_text
from sweep.insight.words import counted, number


def cures(
    study: StudyArgument, storage: StorageOption = None, form: FormatOption = Format.TABLE
) -> None:
    """Compare what keeps training stable, and what it costs in score, with doing nothing.

    A row a cure: each regularizer, each clipping, and both together. Trials are compared at equal
    learning rates.

    \b
    Example:
      sweep cures digits-mlp
    """
    from sweep.insight.effects import COLUMNS, effects
    from sweep.insight.effects_text import as_dict, conclusions, method, points
    from sweep.insight.stored import load_study
    from sweep.store.connection import storage_url
    from sweep.store.storage import Store

    with Store.open(storage_url(storage)) as store:
        found = effects(load_study(store, study))
    if form is Format.JSON:
        print(as_json(as_dict(found)))
        return
    if form is Format.CSV:
        print_rows(COLUMNS, [list(row.values()) for row in found.rows()], form)
        return
    table = []
    for effect in found.effects:
        low, high = effect.share_interval
        best, cost, middle = effect.best, effect.cost, effect.median_interval
        median = number(effect.median)
        table.append(
            [
                effect.cure,
                f"{effect.diverged} of {effect.trials}",
                f"{100 * effect.share:.0f}% ({100 * low:.0f} to {100 * high:.0f})",
                points(effect.against_none) if effect.against_none else None,
                number(best.score) if best else None,
                f"{number(cost.value, 2)} ({number(cost.low, 2)} to {number(cost.high, 2)})"
                if cost
                else None,
                f"{median} ({number(middle[0], 3)} to {number(middle[1], 3)})"
                if middle
                else median,
            ]
        )
    nothing = "No trial has finished yet."
    if found.left_out:
        nothing = f"Nothing to compare: {counted(found.left_out, 'trial')} failed, none diverged."
    print_rows(HEADER, table, form, empty=nothing, spare=("median (95%)",))
    if table:
        print()
        for line in conclusions(found):
            print_text(line)
        print_text(f"  {method(found)}", indent=2)


HEADER = ("cure", "diverged", "share (95%)", "against none", "best", "cost", "median (95%)")
