"""What the cures' numbers say, in words."""

from __future__ import annotations

from typing import Any

from sweep.insight.cures import NONE
from sweep.insight.effects import Effect, Effects, Estimate
from sweep.insight.words import conjunction, counted, number


def as_dict(found: Effects) -> dict[str, Any]:
    """Rows, conclusions and method as JSON values."""
    return {
        "study": found.study,
        "direction": found.direction,
        "score": found.score,
        "trials": found.n_trials,
        "diverged": found.n_diverged,
        "left_out": found.left_out,
        "cures": found.rows(),
        "learning_rate_bins": found.strata,
        "not_matched": list(found.unmatched),
        "conclusions": conclusions(found),
        "method": method(found),
    }


def conclusions(found: Effects) -> list[str]:
    """A sentence each: what keeps training stable, what does not, and what it costs."""
    cures = [effect for effect in found.effects if effect.cure != NONE]
    none = next((effect for effect in found.effects if effect.cure == NONE), None)
    if not found.n_trials:
        return []
    lines = []
    if not found.n_diverged:
        n = "The one trial did not diverge" if found.n_trials == 1 else _none_of(found.n_trials)
        lines.append(f"{n}: at these learning rates nothing needed a cure.")
    if none is None:
        return [*lines, "No trial went without a cure, so there is nothing to compare with."]
    if not cures:
        return [*lines, "No trial had a cure, so there is nothing to compare."]
    if found.n_diverged:
        lines += _stability(cures, none)
    return lines + _costs(cures, none, found.score)


def method(found: Effects) -> str:
    """How the numbers were made, and what they do not take into account."""
    m = sum(effect.against_none is not None for effect in found.effects)
    text = "Shares and medians with 95% intervals (Wilson; order statistics)."
    if any(effect.against_none or effect.cost for effect in found.effects):
        bins = "all learning rates together, too few trials for more"
        if found.strata > 1:
            bins = f"{found.strata} bins of learning rates"
        text += (
            f" Against none: percentage points within {bins}, weighted as by Mantel and Haenszel, "
            f"with Newcombe's interval.{_how_bests_compare(found)}"
        )
    if m > 1:
        text = f"{text[:-1]}; 95% for all {m} together (Bonferroni)."
    if found.unmatched:
        text += f" What else varies is not matched: {conjunction(found.unmatched)}."
    if found.left_out:
        text += f" Left out: {counted(found.left_out, 'trial')} that failed without diverging."
    return text


def _how_bests_compare(found: Effects) -> str:
    """Of how many trials the bests are; nothing where none are compared."""
    sizes = sorted({e.cost_trials for e in found.effects if e.cost_trials is not None})
    if not sizes:
        return ""
    many = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    trials = "trial" if sizes == [1] else "trials"
    return (
        f" Cost: the expected best of {many} {trials}, equally many of either (half of the fewer), "
        "on the same folds; its t interval takes in the folds and which trials were drawn."
    )


def points(estimate: Estimate) -> str:
    """`-36 (-52 to -18)`, in percentage points."""
    value, low, high = (100 * each for each in estimate)
    return f"{value:+.0f} ({low:+.0f} to {high:+.0f})"


def _stability(cures: list[Effect], none: Effect) -> list[str]:
    lines, unclear, alone = [], [], []
    for effect in cures:
        found = effect.against_none
        if found is None:
            alone.append(effect.cure)
        elif not found.is_clear:
            unclear.append(effect.cure)
        else:
            verb, more = ("keeps training stable", "fewer")
            if found.value > 0:
                verb, more = "makes it explode more", "more"
            low, high = sorted((abs(100 * found.low), abs(100 * found.high)))
            lines.append(
                f"{effect.cure} {verb}: at equal learning rates, of 100 trials "
                f"{abs(100 * found.value):.0f} {more} diverged than without a cure "
                f"({low:.0f} to {high:.0f})."
            )
    if unclear:
        lines.append(f"No clear difference in stability from none: {conjunction(unclear)}.")
    if alone:
        lines.append(
            f"Not comparable with none, for want of trials at the same learning rates: "
            f"{conjunction(alone)}."
        )
    if not lines:
        lines.append(f"{none.diverged} of {none.trials} trials without a cure diverged.")
    return lines


def _costs(cures: list[Effect], none: Effect, score: str) -> list[str]:
    if none.best is None:
        return ["No trial without a cure completed, so the cost in score is not known."]
    lines, unclear = [], []
    for effect in cures:
        cost = effect.cost
        if cost is not None and cost.is_clear:
            word = "worse" if cost.value > 0 else "better"
            low, high = sorted((abs(cost.low), abs(cost.high)))
            lines.append(
                f"{effect.cure} scores {word} than none: by {score} {number(abs(cost.value), 2)} "
                f"({number(low, 2)} to {number(high, 2)})."
            )
        elif cost is not None:
            unclear.append(effect.cure)
    if unclear:
        lines.append(f"No clear difference in {score} from none: {conjunction(unclear)}.")
    return lines


def _none_of(n: int) -> str:
    return f"None of {n} trials diverged"
