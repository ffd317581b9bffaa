"""Cures are compared fairly: at equal learning rates, on equal folds, and not beyond the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy import stats

from sweep.insight.effects import COLUMNS, Effects, difference, effects, strata_of
from sweep.insight.effects import _Seen as Seen
from sweep.insight.effects_text import as_dict, conclusions, method
from sweep.insight.expected_best import Tried, expected_best
from sweep.insight.stored import load_study
from sweep.store.storage import Store
from tests.stored_studies import ATTRS, SPACE, complete, digits_trials, diverged, fill

SPACE_WITH_RATES = {**SPACE, "learning_rate": FloatDistribution(1e-4, 10.0, log=True)}


def stored(tmp_path: Path, trials: list[dict[str, Any]], **given: Any) -> Effects:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    fill(url, "s", trials, **{"space": SPACE_WITH_RATES, **given})
    with Store.open(url) as store:
        return effects(load_study(store, "s"))


def trial(rate: float, *, explodes: bool, clip: float | None = None, **more: Any) -> dict[str, Any]:
    params = {"regularizer": "none", "lambda": 1e-3, "learning_rate": rate, "clip_norm": clip}
    params |= more
    scores = [0.5, 0.52, 0.48, 0.51, 0.49 + 0.01 * rate]
    return diverged(params) if explodes else complete(params, scores)


def test_every_trial_has_one_cure_and_none_comes_first(tmp_path: Path) -> None:
    found = stored(tmp_path, digits_trials())
    names = [effect.cure for effect in found.effects]
    assert names == ["none", "l1", "l2", "clip_norm", "regularizer + clip_norm"]
    assert found.n_trials == 40 and found.n_diverged == 8 and found.left_out == 0
    assert all(tuple(row) == COLUMNS for row in found.rows())
    assert set(as_dict(found)) >= {"cures", "conclusions", "method", "learning_rate_bins"}


def test_a_cure_that_was_tried_at_larger_rates_is_not_blamed_for_them(tmp_path: Path) -> None:
    """Simpson's paradox: clipping halves the explosions at each rate, but got the large ones."""
    trials = []
    for i in range(200):
        large, clip = i % 2 == 0, 1.0 if (i % 8 < 7) == (i % 2 == 0) else None
        often = (8 if large else 2) if clip is None else (4 if large else 0)
        trials.append(trial(1.0 if large else 0.01, explodes=(i * 7) // 2 % 10 < often, clip=clip))
    found = stored(tmp_path, trials)
    none, clip_norm = found.effects
    assert clip_norm.share > none.share
    assert clip_norm.against_none is not None and clip_norm.against_none.high < 0
    assert conclusions(found)[0].startswith("clip_norm keeps training stable")


def test_the_difference_is_mantels_and_haenszels() -> None:
    cure = {0: Seen(10, 2), 1: Seen(30, 20), 2: Seen(4, 4)}
    none = {0: Seen(25, 10), 1: Seen(6, 5), 3: Seen(9, 9)}
    found = difference(cure, none)
    top = bottom = 0.0
    for k in (0, 1):
        (n1, a), (n0, b) = cure[k], none[k]
        top += (a * n0 - b * n1) / (n1 + n0)
        bottom += n1 * n0 / (n1 + n0)
    assert found is not None and found.value == pytest.approx(top / bottom)
    assert difference({0: Seen(1, 0)}, {1: Seen(1, 0)}) is None


def test_its_interval_holds_the_truth_where_the_plain_one_does_not() -> None:
    """Equal cures, drawn unequally over rates that explode with shares 0.05 to 0.9."""
    rng = np.random.default_rng(0)
    shares, ours, plain, n = np.array([0.05, 0.2, 0.6, 0.9]), 0, 0, 400
    for _ in range(n):
        sizes = [rng.multinomial(60, p) for p in ([0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4])]
        counts = [rng.binomial(size, shares) for size in sizes]
        seen = [
            {k: Seen(int(s), int(c)) for k, (s, c) in enumerate(zip(*both, strict=True)) if s}
            for both in zip(sizes, counts, strict=True)
        ]
        found = difference(seen[0], seen[1])
        assert found is not None
        ours += found.low <= 0 <= found.high
        together = [{0: Seen(60, int(count.sum()))} for count in counts]
        crude = difference(together[0], together[1])
        assert crude is not None
        plain += crude.low <= 0 <= crude.high
    assert 0.93 < ours / n < 0.995 and plain / n < 0.2


def test_few_trials_are_no_clear_difference(tmp_path: Path) -> None:
    trials = [trial(1.0, explodes=i < 2, clip=None if i < 3 else 1.0) for i in range(6)]
    found = stored(tmp_path, trials)
    assert "No clear difference in stability from none: clip_norm." in conclusions(found)


def test_without_trials_at_the_same_rates_nothing_is_compared(tmp_path: Path) -> None:
    trials = [trial(0.01 if i < 20 else 1.0, explodes=i >= 20,
                    clip=1.0 if i < 20 else None) for i in range(40)]  # fmt: skip
    found = stored(tmp_path, trials)
    assert found.strata == 2 and found.effects[1].against_none is None
    assert any("for want of trials at the same learning rates" in c for c in conclusions(found))


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        ([trial(0.1, explodes=False)], "The one trial did not diverge"),
        ([trial(0.1, explodes=False)] * 3, "None of 3 trials diverged"),
        ([trial(0.1, explodes=True, clip=1.0)] * 3, "No trial went without a cure"),
        ([trial(0.1, explodes=True)] * 3, "No trial had a cure"),
        ([trial(0.1, explodes=True), trial(0.1, explodes=False, clip=1.0)], "cost in score is not"),
    ],
)
def test_what_cannot_be_answered_is_said(
    trials: list[dict[str, Any]], words: str, tmp_path: Path
) -> None:
    found = stored(tmp_path, trials)
    assert words in " ".join(conclusions(found)) and method(found).endswith(".")


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_cost_of_one_trial_against_one_is_fold_by_fold(tmp_path: Path, direction: str) -> None:
    """Its interval is the t interval with Nadeau and Bengio's standard error; positive is worse."""
    sign = -1 if direction == "maximize" else 1
    none, l1 = [0.50, 0.55, 0.45, 0.52, 0.48], [0.60, 0.64, 0.56, 0.61, 0.60]
    params = {"learning_rate": 0.1, "lambda": 1e-3, "clip_norm": None}
    trials = [
        complete({**params, "regularizer": name}, [sign * s for s in scores])
        for name, scores in (("none", none), ("l1", l1))
    ]
    found = stored(tmp_path, trials, direction=direction)
    cost = found.effects[1].cost
    assert cost is not None
    d = np.subtract(l1, none)
    half = stats.t.ppf(0.975, 4) * math.sqrt((1 / 5 + 1 / 4) * d.var(ddof=1))
    assert cost == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
    assert any(text.startswith("l1 scores worse than none") for text in conclusions(found))


def test_the_cost_is_of_equally_many_trials_diverged_ones_among_them(tmp_path: Path) -> None:
    """Half of the fewer; a trial that diverged was spent, and is no score."""
    folds = np.array([0.02, -0.02, 0.0, 0.01, -0.01])
    params = {"learning_rate": 0.1, "lambda": 1e-3, "clip_norm": None}
    means = {"none": [0.5, 0.6, 0.7, 0.8], "l1": [0.4 + 0.1 * i for i in range(9)]}
    trials = [
        complete({**params, "regularizer": name}, list(mean + folds))
        for name, each in means.items() for mean in each
    ] + [diverged({**params, "regularizer": "none"})] * 2  # fmt: skip
    found = stored(tmp_path, trials).effects[1]
    sides = [
        Tried(n, np.array(means[name])[:, None] + folds) for name, n in (("l1", 9), ("none", 6))
    ]
    expected = expected_best(sides[0], 3).mean() - expected_best(sides[1], 3).mean()
    assert found.cost is not None and found.cost_trials == 3
    assert found.cost.value == pytest.approx(expected) and found.cost.low < 0 < found.cost.high


def test_comparisons_hold_together(tmp_path: Path) -> None:
    """Bonferroni: with two cures each interval is at 97.5%, wider than alone."""
    pair = [trial(0.1, explodes=i % 2 == 0, clip=(None, 1.0)[i // 20]) for i in range(40)]
    more = [trial(0.1, explodes=False, regularizer="l1") for _ in range(20)]
    url = f"sqlite:///{tmp_path / 'two.db'}"
    fill(url, "two", pair + more, space=SPACE_WITH_RATES)
    with Store.open(url) as store:
        two = effects(load_study(store, "two"))
    alone = stored(tmp_path, pair)
    widths = [e.against_none.high - e.against_none.low for e in (alone.effects[1], two.effects[2])
              if e.against_none]  # fmt: skip
    assert len(widths) == 2 and widths[0] < widths[1]
    assert "for all 2 together (Bonferroni)" in method(two)


def test_bins_hold_twenty_trials_each_and_are_ten_at_most() -> None:
    assert strata_of([0.1] * 50) == [] and strata_of([]) == []
    assert strata_of([0.1, 0.1, 0.2, 0.2, 0.3, 0.3]) == [0.2, 0.3]
    assert len(strata_of([0.001 * i for i in range(1, 61)])) == 2
    assert len(strata_of([0.001 * i for i in range(1, 5001)])) == 9


def test_what_varies_too_is_named(tmp_path: Path) -> None:
    space = {**SPACE_WITH_RATES, "hidden": CategoricalDistribution([8, 16])}
    attrs = {**ATTRS, "knobs": {"fixed": {}, "varied": sorted(space)}}
    trials = [trial(0.1, explodes=False, hidden=8), trial(0.2, explodes=False, hidden=16)]
    found = stored(tmp_path, trials, attrs=attrs, space=space)
    assert found.unmatched == ("hidden",) and "not matched: hidden" in method(found)
