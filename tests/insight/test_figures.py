"""The figures show what is stored, and the dashboard shows the figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import optuna
import plotly.graph_objects as go
import pytest
from optuna.trial import TrialState
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from sweep.insight.figures import COLORS, SYMBOLS, cv_curve
from sweep.insight.note import save_figures
from sweep.insight.selection import candidates, choices
from sweep.insight.stability import stability_map
from sweep.insight.stability_figure import LOOKS, stability_figure
from sweep.insight.stored import StoredStudy, load_study
from sweep.spec.study import Regularizer
from sweep.store.storage import Store
from sweep.training.divergence import Reason
from tests.stored_studies import fill


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    fill(database_url)
    with Store.open(database_url) as store:
        yield store


@pytest.fixture
def study(store: Store) -> StoredStudy:
    return load_study(store, "digits")


def test_every_complete_trial_with_a_lambda_is_a_point_at_its_score(study: StoredStudy) -> None:
    figure = cv_curve(study)
    assert figure is not None
    shown = {
        (trace.name, number, lam, score, se)
        for trace in figure.data if trace.mode == "markers"
        for number, lam, score, se in zip(
            trace.customdata, trace.x, trace.y, trace.error_y.array, strict=True
        )
    }  # fmt: skip
    expected = {
        (c.regularizer, c.number, c.lam, c.score, c.score_se or 0.0)
        for c in candidates(study) if c.lam is not None
    }  # fmt: skip
    assert shown == expected and shown
    assert figure.layout.xaxis.type == "log"


def test_lines_stand_at_the_best_lambda_and_at_lambda_1se(study: StoredStudy) -> None:
    figure = cv_curve(study)
    assert figure is not None
    lines = {trace.name.partition(":")[0]: trace for trace in figure.data if trace.mode == "lines"}
    first = choices(study)[0]
    assert first.best is not None and first.strongest is not None
    assert set(lines["best"].x) == {first.best.lam}
    if first.strongest.number != first.best.number:
        assert set(lines["lambda.1se"].x) == {first.strongest.lam}
    none = [c for c in choices(study) if c.regularizer == "none" and c.best is not None]
    assert ("none" in lines) == bool(none)


def test_regularizers_are_told_apart_by_colour_and_by_shape(study: StoredStudy) -> None:
    figure = cv_curve(study)
    assert figure is not None
    looks = [(t.marker.color, t.marker.symbol) for t in figure.data if t.mode == "markers"]
    assert len({color for color, _ in looks}) == len({shape for _, shape in looks}) == len(looks)
    built_in = len(Regularizer.__args__[0].__args__)  # type: ignore[attr-defined]
    assert min(len(COLORS), len(SYMBOLS)) >= built_in


def test_without_a_lambda_there_is_nothing_to_draw(study: StoredStudy) -> None:
    assert cv_curve(replace(study, trials=())) is None


def test_the_dashboard_finds_the_figure_and_an_older_one_is_replaced(
    store: Store, study: StoredStudy
) -> None:
    storage = store.optuna_storage()
    study_id = store.study_id("digits")
    half = replace(study, trials=study.trials[:20])
    for each in (study, half):
        save_figures(store, each)
        kept = get_plotly_graph_objects(storage.get_study_system_attrs(study_id))
        drawn = {
            "cv-curve": cv_curve(each),
            "stability-map": stability_figure(stability_map(each), fixed=False),
        }
        assert set(kept) == set(drawn)
        for name, figure in drawn.items():
            assert figure is not None and json.loads(kept[name]) == json.loads(figure.to_json())
    assert len(optuna.load_study(study_name="digits", storage=storage).trials) == 40


def test_numbers_are_written_so_that_any_plotly_reads_them(study: StoredStudy) -> None:
    """Not as base64, which the dashboard's plotly.js may not know."""
    for figure in (cv_curve(study), stability_figure(stability_map(study))):
        assert figure is not None and "bdata" not in figure.to_json()


def test_the_dashboard_has_a_map_once_a_trial_has_diverged(
    store: Store, study: StoredStudy
) -> None:
    study_id = store.study_id("digits")
    stable = tuple(trial for trial in study.trials if trial.state == TrialState.COMPLETE)
    save_figures(store, replace(study, trials=stable))
    attrs = store.optuna_storage().get_study_system_attrs(study_id)
    assert set(get_plotly_graph_objects(attrs)) == {"cv-curve"}


def test_every_trial_of_the_map_is_a_marker_of_its_outcome(study: StoredStudy) -> None:
    drawn = stability_map(study)
    figure = stability_figure(drawn)
    assert figure is not None
    markers = list(figure.select_traces({"mode": "markers"}))
    shown = {(trace.name, text.partition(":")[0]) for trace in markers for text in trace.text}
    assert shown == {(point.outcome, f"trial {point.number}") for point in drawn.points}
    for trace in markers:
        assert (trace.marker.color, trace.marker.symbol) == LOOKS[trace.name]


def test_every_outcome_has_a_colour_and_a_shape_of_its_own() -> None:
    assert set(LOOKS) == {"complete", "pruned", *(reason.value for reason in Reason)}
    colors, shapes = zip(*LOOKS.values(), strict=True)
    assert len(set(colors)) == len(set(shapes)) == len(LOOKS)


def test_the_bound_is_a_line_in_the_panels_that_it_is_for(study: StoredStudy) -> None:
    assert not list(_map(study).select_traces({"mode": "lines"}))
    attrs = {
        **study.attrs,
        "spec": {"task": "regression", "model": {"kind": "linear"}},
        "curvature": {"weights": [4.0, 2.0], "with_bias": [4.0, 2.0]},
    }
    attrs["knobs"] = {**attrs["knobs"], "fixed": {"batch_size": "full", "momentum": 0.5}}
    lines = list(_map(replace(study, attrs=attrs)).select_traces({"mode": "lines"}))
    assert len(lines) == 3  # none, l1, l2; not where the gradient is clipped
    for line in lines:
        l2 = max(line.x) > min(line.x)
        for x, y in zip(line.x, line.y, strict=True):
            assert x == pytest.approx(2 * 1.5 / (4 + y * l2), rel=1e-4)


def _map(study: StoredStudy) -> go.Figure:
    figure = stability_figure(stability_map(study))
    assert figure is not None
    return figure
