"""Every study in studies/ runs, and does what its first comment says."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sweep
from sweep.insight.cures import UNCLIPPED
from sweep.insight.stability import stability_map
from sweep.insight.stored import load_study
from sweep.search.plan import make_plan
from sweep.spec import load_spec
from sweep.store.storage import Store
from sweep.training.divergence import SPIKE

STUDIES = Path(__file__).resolve().parents[1] / "studies"
FILES = sorted(path.name for path in STUDIES.glob("*.yaml"))
EXPECTED = [
    "adding_rnn.yaml",
    "article.yaml",
    "breast_cancer_logistic.yaml",
    "diabetes_linear.yaml",
    "diabetes_path.yaml",
    "digits_cnn.yaml",
    "digits_mlp.yaml",
    "exploding_rnn.yaml",
    "residual_net.yaml",
    "stability_map.yaml",
    "table.yaml",
]
PUBLISHED = {
    "none": (None, 0.50175495),
    "l2": (0.00562341, 0.50100532),
    "l1": (0.01, 0.50065397),
    "elastic_net": (0.0177828, 0.50068864),
}
"""lambda and score of the best trial, of 25 lambdas, on scikit-learn's diabetes data."""
START, LAMBDA, STEPS = 100.0, 0.01, 1000


def run(
    name: str, folder: Path, *overrides: str, trials: int | None = None
) -> tuple[sweep.Result, sweep.Database]:
    url = f"sqlite:///{folder / 'sweep.db'}"
    result = sweep.run(STUDIES / name, storage=url, overrides=overrides, trials=trials)
    return result, sweep.open(url)


def test_no_study_is_forgotten() -> None:
    assert FILES == EXPECTED


@pytest.mark.parametrize("name", FILES)
def test_a_study_says_first_what_it_shows_and_can_be_planned(name: str) -> None:
    assert (STUDIES / name).read_text("utf-8").startswith("# Shows ")
    plan = make_plan(load_spec(STUDIES / name))
    assert plan.members == plan.trials * len(plan.folds)
    assert plan.parameters[0] >= 1


CALM = {"adding_rnn.yaml": ["train.learning_rate=0.1"]}
"""For studies whose first trials explode."""


@pytest.mark.parametrize("name", [name for name in FILES if name != "article.yaml"])
def test_a_study_runs_end_to_end(name: str, tmp_path: Path) -> None:
    result, database = run(name, tmp_path, "train.epochs=1", *CALM.get(name, []), trials=2)
    assert list(result.trials()["state"]) == ["COMPLETE"] * 2
    n_folds = len(make_plan(load_spec(STUDIES / name)).folds)
    assert len(result.folds()) == 2 * n_folds
    assert int(database.studies()["complete"].sum()) == 2


class Step(NamedTuple):
    """One weight of the article's problem: w -> next weight, and the loss that is minimised."""

    regularizer: str
    l1: str
    learning_rate: float

    def after(self, w: float) -> float:
        eta, slope = self.learning_rate, 2 * w
        if self.regularizer == "l2":
            return w - eta * (slope + LAMBDA * w)
        if self.regularizer == "l1" and self.l1 == "subgradient":
            return w - eta * (slope + LAMBDA * math.copysign(float(w != 0), w))
        u = w - eta * slope
        if self.regularizer == "none":
            return u
        return math.copysign(max(0.0, abs(u) - eta * LAMBDA), u)

    def penalty(self, w: float) -> float:
        return {"none": 0.0, "l1": LAMBDA * abs(w), "l2": LAMBDA * w * w / 2}[self.regularizer]

    def loss(self, w: float) -> float:
        """Of both weights, which are equal: sum(w^2) + lambda * R(w)."""
        return 2 * w * w + 2 * self.penalty(w)


def known_end(step: Step, steps: int = STEPS) -> tuple[float | None, int | None]:
    """(mean squared error 4 w^2, None) after all steps, or (None, the step that diverged).

    Divergence as documented: above 1e6 times the first loss for 10 steps, or once 1e9 times.
    """
    w, most, streak = START, 1e6 * step.loss(START), 0
    for t in range(steps):
        loss = step.loss(w)
        streak = streak + 1 if loss > most else 0
        if streak == 10 or loss > SPIKE * most:
            return None, t
        w = step.after(w)
    return 4 * w * w, None


def check_against_known_ends(result: sweep.Result, database: sweep.Database, steps: int) -> None:
    failed = database.sql(
        "SELECT trial, reason, step, layer FROM sweep_failures WHERE study = :study",
        study=result.study,
    ).set_index("trial")
    for row in result.trials().itertuples():
        step = Step(row.regularizer, row.l1, row.learning_rate)
        score, diverged_at = known_end(step, steps)
        bound = 2 / (2 + LAMBDA) if step.regularizer == "l2" else 1.0
        assert (diverged_at is not None) == (step.learning_rate > bound), step
        if diverged_at is None:
            assert row.state == "COMPLETE", step
            assert row.score == pytest.approx(score, rel=1e-6, abs=1e-20), step
        else:
            assert row.state == "FAIL", step
            reason, at, layer = failed.loc[row.trial]
            assert (reason, at, layer) == ("loss_explosion", diverged_at, "linear.weight"), step


def test_the_article_has_its_known_answer_in_all_18_trials(tmp_path: Path) -> None:
    result, database = run("article.yaml", tmp_path)
    trials = result.trials()
    assert len(trials) == 18
    assert len({(t.regularizer, t.l1, t.learning_rate) for t in trials.itertuples()}) == 18
    check_against_known_ends(result, database, STEPS)
    stored = database.sql(
        "SELECT t.number, a.value_json FROM trial_user_attributes a "
        "JOIN trials t ON t.trial_id = a.trial_id WHERE a.key = 'nonzero'"
    )
    nonzero = {number: json.loads(text) for number, text in stored.itertuples(index=False)}
    for row in trials[trials["state"] == "COMPLETE"].itertuples():
        exact = row.regularizer == "l1" and row.l1 == "proximal"
        assert nonzero[row.trial] == ([0, 0] if exact else [2, 2])
        assert (row.score == 0) == exact
        if row.regularizer == "l1" and row.l1 == "subgradient":
            # |w| = sqrt(score) / 2 hops within eta * lambda of 0; where steps overshoot
            # (eta > 1/2) the hop grows to eta * lambda / (2 * (1 - eta)).
            eta = row.learning_rate
            hop = eta * LAMBDA * max(1.0, 0.5 / (1 - eta))
            assert 0 < math.sqrt(row.score) / 2 <= hop * (1 + 1e-6)


@pytest.mark.slow
def test_a_rate_between_the_two_bounds_diverges_under_l2_alone(tmp_path: Path) -> None:
    """2 / (2 + lambda) = 0.99502 < 0.998 < 1; the growth is 1.006 a step, so more are needed."""
    steps = 1300
    result, database = run(
        "article.yaml",
        tmp_path,
        "train.learning_rate={choices: [0.995, 0.998]}",
        f"train.epochs={steps}",
    )
    assert set(result.diverged()["trial"]) == set(
        result.trials(where="regularizer = 'l2' AND learning_rate > 0.996")["trial"]
    )
    check_against_known_ends(result, database, steps)


def shows_diabetes(result: sweep.Result, database: sweep.Database) -> None:
    """The table of facts: best CV MSE of each regularizer over 25 lambdas (scikit-learn)."""
    table = {"l2": 0.50100532, "l1": 0.50065397, "elastic_net": 0.50068864, "none": 0.50175495}
    summary = result.summary()
    found = {choice.regularizer: choice.best for choice in summary.choices}
    assert summary.clear_winner is None
    assert not any(comparison.told_apart for comparison in summary.comparisons)
    for name, score in table.items():
        best = found[name]
        assert best is not None and best.score == pytest.approx(score, abs=4e-4), name
    assert found["none"] is not None
    assert found["none"].score == pytest.approx(table["none"], rel=1e-4)


def shows_breast_cancer(result: sweep.Result, database: sweep.Database) -> None:
    summary = result.summary()
    found = {choice.regularizer: choice.best for choice in summary.choices}
    l1, l2 = found["l1"], found["l2"]
    assert l1 is not None and l2 is not None and summary.clear_winner is None
    assert l2.nonzero == 30 and l1.nonzero is not None and l1.nonzero <= 20


def shows_digits_mlp(result: sweep.Result, database: sweep.Database) -> None:
    """Large rates without clipping kill the network or explode; the best trial has none such."""
    trials, best = result.trials(), result.best
    assert len(trials) == 200 and best is not None and best.score < 0.1
    reckless = trials[trials["clip_norm"].isna() & (trials["learning_rate"] > 0.6)]
    assert len(reckless) > 0
    assert ((reckless["score"] > 2) | (reckless["failure_kind"] == "divergence")).all()
    assert best.params["learning_rate"] < 0.5


def shows_digits_cnn(result: sweep.Result, database: sweep.Database) -> None:
    found = {choice.regularizer: choice.best for choice in result.summary().choices}
    lasso, none = found["group_lasso"], found["none"]
    assert lasso is not None and none is not None
    assert lasso.nonzero is not None and none.nonzero is not None
    assert lasso.nonzero < none.nonzero
    assert (result.trials()["state"] == "PRUNED").any()


def solved(result: sweep.Result, better: Callable[[Any], Any]) -> dict[tuple[str, bool], int]:
    """Of five seeds those solved, by (regularizer, whether the norm is clipped)."""
    folds = result.folds().merge(result.trials()[["trial", "regularizer", "clip_norm"]])
    assert len(result.trials()) == 4
    cells = {(name, clip): 0 for name in ("none", "vanishing") for clip in (False, True)}
    for fold in folds.itertuples():
        cells[fold.regularizer, not math.isnan(fold.clip_norm)] += bool(better(fold.score))
    return cells


def shows_exploding_rnn(result: sweep.Result, database: sweep.Database) -> None:
    """Pascanu et al. (2013): clipping helps, the penalty helps, both together solve every seed."""
    cells = solved(result, lambda accuracy: accuracy > 0.99)
    assert cells["none", False] <= 2
    assert cells["none", False] < cells["vanishing", False]
    assert cells["none", True] == cells["vanishing", True] == 5


def shows_adding_rnn(result: sweep.Result, database: sweep.Database) -> None:
    """What is not clipped explodes within ten updates; what is, with or without the penalty, is
    solved by every seed."""
    cells = solved(result, lambda mse: mse < 0.006)
    assert cells["none", True] == cells["vanishing", True] == 5
    diverged = result.diverged()
    assert len(diverged) == 2 and diverged["step"].max() < 10
    assert result.trials(where="state = 'FAIL'")["clip_norm"].isna().all()


def shows_residual_net(result: sweep.Result, database: sweep.Database) -> None:
    assert set(result.trials()["depth"]) == {1, 2}
    best = result.best
    assert best is not None and best.score < 0.15


def shows_stability_map(result: sweep.Result, database: sweep.Database) -> None:
    """Above the bound everything unclipped explodes, but for l1 that keeps its weights at 0."""
    with Store.open(result.url) as store:
        panels = stability_map(load_study(store, result.study)).panels
    assert len(panels) == 6
    for panel in panels:
        if panel.clipping != UNCLIPPED:
            assert panel.n_diverged == 0
            continue
        for point in panel.points:
            assert point.bound is not None
            if point.rate < point.bound:
                assert not point.diverged
            elif point.rate > 1.02 * point.bound and (panel.regularizer != "l1" or point.lam < 0.1):
                assert point.diverged


def shows_table(result: sweep.Result, database: sweep.Database) -> None:
    """Better than always saying how many are let: the entropy of the labels."""
    plan = make_plan(load_spec(STUDIES / "table.yaml"))
    assert plan.classes is not None
    shares = [count / plan.rows for count in plan.classes.values()]
    best = result.best
    assert best is not None
    assert best.score + 2 * best.score_se < -sum(p * math.log(p) for p in shares)
    assert any("dates" in text for text in plan.notices)
    assert sum("left out" in text for text in plan.notices) == 3


def shows_diabetes_path(result: sweep.Result, database: sweep.Database) -> None:
    """The published optima, each at its place on the path."""
    trials = result.trials()
    assert set(trials["state"]) == {"COMPLETE"}
    for regularizer, (lam, score) in PUBLISHED.items():
        own = trials[trials["regularizer"] == regularizer]
        best = own.loc[own["score"].idxmin()]
        assert best["score"] == pytest.approx(score, abs=1e-7)
        assert lam is None or best["lambda"] == pytest.approx(lam, rel=1e-4)


SHOWS: dict[str, Any] = {
    "adding_rnn.yaml": shows_adding_rnn,
    "breast_cancer_logistic.yaml": shows_breast_cancer,
    "diabetes_linear.yaml": shows_diabetes,
    "diabetes_path.yaml": shows_diabetes_path,
    "digits_cnn.yaml": shows_digits_cnn,
    "digits_mlp.yaml": shows_digits_mlp,
    "exploding_rnn.yaml": shows_exploding_rnn,
    "residual_net.yaml": shows_residual_net,
    "stability_map.yaml": shows_stability_map,
    "table.yaml": shows_table,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHOWS))
def test_a_study_shows_what_it_says_in_under_two_minutes(name: str, tmp_path: Path) -> None:
    began = time.monotonic()
    result, database = run(name, tmp_path)
    seconds = time.monotonic() - began
    SHOWS[name](result, database)
    assert seconds < 120


def test_every_study_is_shown_to_do_what_it_says() -> None:
    assert sorted([*SHOWS, "article.yaml"]) == FILES
