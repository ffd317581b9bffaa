"""The stability map counts every trial once, and its lines of text agree with the trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution

from sweep.errors import RequestError
from sweep.insight.cures import GRADIENT_CURES, UNCLIPPED, cure_of, is_given
from sweep.insight.stability import COLUMNS, LAMBDA_BINS, RATE_BINS, Bin, stability_map
from sweep.insight.stored import StoredStudy, load_study
from sweep.spec.study import TrainSpec
from sweep.store.storage import Store
from tests.stored_studies import ATTRS, SPACE, complete, digits_trials, diverged, fill


def stored(tmp_path: Path, trials: list[dict[str, Any]], **given: Any) -> StoredStudy:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    fill(url, "s", trials, **given)
    with Store.open(url) as store:
        return load_study(store, "s")


def test_every_trial_is_in_one_cell(tmp_path: Path) -> None:
    found = stability_map(stored(tmp_path, digits_trials()))
    rows = found.rows()
    assert all(tuple(row) == COLUMNS for row in rows)
    assert sum(row["trials"] for row in rows) == 40
    assert sum(row["diverged"] for row in rows) == 8
    expected = Counter(
        (t["params"]["regularizer"], "no clipping" if t["params"]["clip_norm"] is None
         else "clip_norm 1") for t in digits_trials()
    )  # fmt: skip
    counted: Counter[tuple[str, str]] = Counter()
    for row in rows:
        counted[row["regularizer"], row["clipping"]] += row["trials"]
    assert counted == expected
    for row in rows:
        assert row["share_low"] <= row["share"] == row["diverged"] / row["trials"]
        assert (row["lambda_low"] is None) == (row["regularizer"] == "none")
    assert len(found.rate_bins) == RATE_BINS and len(found.lambda_bins) == LAMBDA_BINS


def test_a_cells_trials_lie_within_its_bins(tmp_path: Path) -> None:
    found = stability_map(stored(tmp_path, digits_trials()))
    for panel in found.panels:
        for cell in found.cells(panel):
            inside = [
                p for p in panel.points
                if _holds(cell.rates, p.rate, found.rate_bins)
                and (cell.lams is None or _holds(cell.lams, p.lam or 0, found.lambda_bins))
            ]  # fmt: skip
            assert cell.trials == len(inside)
            assert cell.diverged == sum(point.diverged for point in inside)


def _holds(bounds: Bin, value: float, bins: Sequence[Bin]) -> bool:
    """Its least value is a bin's own, its greatest the next one's, but for the last."""
    low, high = bounds
    return low <= value < high or (value == high and bounds == bins[-1])


def test_a_lambda_of_0_is_no_regularizer(tmp_path: Path) -> None:
    space = {**SPACE, "lambda": FloatDistribution(0, 1)}
    params = {"regularizer": "l1", "lambda": 0.0, "learning_rate": 0.1, "clip_norm": None}
    found = stability_map(stored(tmp_path, [complete(params, [1.0, 2.0])], space=space))
    (panel,) = found.panels
    assert (panel.regularizer, panel.clipping, panel.has_lambda) == ("none", UNCLIPPED, False)


def test_many_clippings_are_told_apart_by_name(tmp_path: Path) -> None:
    space = {**SPACE, "clip_norm": FloatDistribution(0.1, 10)}
    trials = [
        complete({"learning_rate": 0.1 * (1 + i), "clip_norm": 0.1 * (1 + i)}, [1.0, 2.0])
        for i in range(9)
    ]
    (panel,) = stability_map(stored(tmp_path, trials, space=space)).panels
    assert panel.clipping == "clip_norm" and len(panel.points) == 9


def test_what_failed_otherwise_is_left_out_and_said(tmp_path: Path) -> None:
    trials = digits_trials()[:10]
    error = diverged(trials[0]["params"])
    error["attrs"]["failure"]["kind"] = "error"
    found = stability_map(stored(tmp_path, [*trials, error]))
    assert found.left_out == 1 and len(found.points) == 10


@pytest.mark.parametrize("fixed", [{"learning_rate": 0.1}, {}])
def test_without_learning_rates_there_is_no_map(tmp_path: Path, fixed: dict[str, Any]) -> None:
    attrs = {**ATTRS, "knobs": {"fixed": fixed, "varied": ["lambda"]}}
    study = stored(tmp_path, [complete({"lambda": 0.1}, [1.0, 2.0])], attrs=attrs)
    with pytest.raises(RequestError, match="learning_rate"):
        stability_map(study)


def test_a_study_of_plain_optuna_is_mapped(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'plain.db'}"
    fill(url, "made", [])
    with Store.open(url) as store:
        plain = optuna.create_study(storage=store.optuna_storage(), study_name="plain")
        plain.optimize(lambda trial: trial.suggest_float("learning_rate", 0.1, 1.0), 3)
        found = stability_map(load_study(store, "plain"))
    assert [len(panel.points) for panel in found.panels] == [3]
    assert "No analytic bound" in found.bound_text()


def test_trials_are_counted_on_either_side_of_the_bound(tmp_path: Path) -> None:
    attrs = {
        **ATTRS,
        "spec": {"task": "regression", "model": {"kind": "linear"}},
        "knobs": {"fixed": {"batch_size": "full"}, "varied": sorted(SPACE)},
        "curvature": {"weights": [4.0], "with_bias": [4.0]},
    }
    found = stability_map(stored(tmp_path, digits_trials(), attrs=attrs))
    sides = []
    for each in digits_trials():
        params = each["params"]
        if params["clip_norm"] is None:
            bound = 2 / (4 + params["lambda"] * (params["regularizer"] == "l2"))
            sides.append((params["learning_rate"] > bound, each["value"] is None))
    above, below = ([gone for side, gone in sides if side == which] for which in (True, False))
    assert f"{sum(above)} of the {len(above)} trials above it" in found.bound_text()
    assert f"{sum(below)} of the {len(below)} below" in found.bound_text()
    for row in found.rows():
        known = row["clipping"] == UNCLIPPED
        assert (row["bound"] is not None) == known


def test_every_knob_that_clips_is_a_cure() -> None:
    assert {name for name in TrainSpec.model_fields if name.startswith("clip")} <= {*GRADIENT_CURES}


@pytest.mark.parametrize(
    ("knobs", "cure"),
    [
        ({}, "none"),
        ({"regularizer": "l1", "lambda": 0.1}, "l1"),
        ({"regularizer": "l1", "lambda": 0.0}, "none"),
        ({"regularizer": "none", "lambda": 0.1}, "none"),
        ({"regularizer": None, "lambda": None, "clip_norm": float("nan")}, "none"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"clip_norm": 1, "clip_value": 0.5}, "clip_norm + clip_value"),
        ({"regularizer": "l2", "lambda": 1, "clip_value": 0.5}, "regularizer + clip_value"),
    ],
)
def test_the_cure_of_a_trial(knobs: dict[str, Any], cure: str) -> None:
    assert cure_of(knobs) == cure


def test_what_turns_something_on() -> None:
    assert [v for v in (None, False, float("nan"), float("inf")) if is_given(v)] == []
    assert all(is_given(value) for value in (1, 0.5, True, "adaptive", {"kind": "adaptive"}))
