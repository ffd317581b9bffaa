"""The questions of docs/queries.md, each on both databases, with `study.trials` as the oracle."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from sweep.insight.selection import choices
from sweep.insight.stored import load_study
from sweep.store import queries, rows
from sweep.store.storage import Store
from tests.stored_studies import SPACE, complete, digits_trials, fill

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "queries.md").read_text("utf-8")
QUESTIONS = dict(re.findall(r"^(\S[^\n]*)\n\n```sql\n(.*?)```$", PAGE, re.MULTILINE | re.DOTALL))

Row = tuple[Any, ...]
Oracle = Callable[[list[FrozenTrial]], list[Row]]
ORACLES: dict[str, Oracle] = {}


def answers(question: str) -> Callable[[Oracle], Oracle]:
    """Registers an oracle for the question that begins so."""

    def register(oracle: Oracle) -> Oracle:
        (name,) = (name for name in QUESTIONS if name.startswith(question))
        ORACLES[name] = oracle
        return oracle

    return register


def is_diverged(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("failure", {}).get("kind") == "divergence"


def completed(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def folds_of(trial: FrozenTrial) -> list[float]:
    return list(trial.user_attrs["fold_scores"])


def seconds_of(trial: FrozenTrial) -> float:
    assert trial.duration is not None
    return trial.duration.total_seconds()


@answers("Which regularizer diverges most")
def diverges_most(trials: list[FrozenTrial]) -> list[Row]:
    tried = Counter(trial.params["regularizer"] for trial in trials)
    lost = Counter(trial.params["regularizer"] for trial in trials if is_diverged(trial))
    found = [(name, n, lost[name], lost[name] / n) for name, n in tried.items()]
    return sorted(found, key=lambda row: (-row[3], row[0]))


@answers("From which learning rate on")
def explodes_from(trials: list[FrozenTrial]) -> list[Row]:
    found = []
    for clip in (None, 1.0):
        mine = [trial for trial in trials if trial.params["clip_norm"] == clip]
        good = [trial.params["learning_rate"] for trial in completed(mine)]
        bad = [trial.params["learning_rate"] for trial in mine if is_diverged(trial)]
        found.append((clip, max(good, default=None), min(bad, default=None)))
    return found


@answers("What broke")
def broke(trials: list[FrozenTrial]) -> list[Row]:
    failures = [(t.number, t.user_attrs["failure"]) for t in trials if t.state == TrialState.FAIL]
    keys = {(failure["reason"], failure["layer"]) for _, failure in failures}
    found = []
    for reason, layer in keys:
        mine = [(n, f) for n, f in failures if (f["reason"], f["layer"]) == (reason, layer)]
        first = min(failure["step"] for _, failure in mine)
        found.append((reason, layer, len(mine), first, min(n for n, _ in mine)))
    return sorted(found, key=lambda row: (-row[2], row[0], row[1]))


@answers("The lambda curve")
def curve(trials: list[FrozenTrial]) -> list[Row]:
    return sorted(
        (t.params["regularizer"], t.params["lambda"], t.value, t.user_attrs["score_se"])
        for t in completed(trials)
        if t.params["regularizer"] != "none"
    )


@answers("The strongest lambda")
def strongest(trials: list[FrozenTrial]) -> list[Row]:
    mine = [trial for trial in completed(trials) if trial.params["regularizer"] == "l1"]
    best = min(mine, key=lambda trial: trial.value or 0.0)
    limit = best.value + best.user_attrs["score_se"]  # type: ignore[operator]
    within = [trial for trial in mine if (trial.value or 0.0) <= limit]
    found = max(within, key=lambda trial: trial.params["lambda"])
    return [(found.number, found.params["lambda"], found.value)]


@answers("On which trials do the folds disagree")
def disagree(trials: list[FrozenTrial]) -> list[Row]:
    found = [(t.number, min(folds_of(t)), max(folds_of(t))) for t in completed(trials)]
    spread = [(number, low, high, high - low) for number, low, high in found]
    return sorted(spread, key=lambda row: (-row[3], row[0]))[:5]


@answers("Which fold is the hardest")
def hardest(trials: list[FrozenTrial]) -> list[Row]:
    columns = zip(*map(folds_of, completed(trials)), strict=True)
    means = [(i, statistics.fmean(scores), len(scores)) for i, scores in enumerate(columns)]
    return sorted(means, key=lambda row: -row[1])


@answers("Does the best `l1` trial beat")
def fold_by_fold(trials: list[FrozenTrial]) -> list[Row]:
    def best(regularizer: str) -> FrozenTrial:
        mine = [t for t in completed(trials) if t.params["regularizer"] == regularizer]
        return min(mine, key=lambda trial: (trial.value or 0.0, trial.number))

    pairs = zip(folds_of(best("l1")), folds_of(best("l2")), strict=True)
    return [(i, a, b, a - b) for i, (a, b) in enumerate(pairs)]


@answers("Which trials took longer")
def slow(trials: list[FrozenTrial]) -> list[Row]:
    median = statistics.median(map(seconds_of, trials))
    found = [(t.number, t.state.name, seconds_of(t)) for t in trials if seconds_of(t) > median]
    return sorted(found, key=lambda row: (-row[2], row[0]))


@answers("How did the best score come down")
def come_down(trials: list[FrozenTrial]) -> list[Row]:
    found, best = [], float("inf")
    for trial in completed(trials):
        assert trial.value is not None
        best = min(best, trial.value)
        found.append((trial.number, trial.value, best))
    return found


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The study `digits` with times of its own, beside another that must not be mixed in."""
    fill(database_url)
    other = {"regularizer": "l1", "lambda": 1e-9, "learning_rate": 9.0, "clip_norm": None}
    space = {**SPACE, "lambda": optuna.distributions.FloatDistribution(1e-9, 1.0)}
    space["learning_rate"] = optuna.distributions.FloatDistribution(0, 9)
    fill(database_url, "other", [complete(other, [-9.0, 9.0])], space=space)
    with Store.open(database_url) as opened:
        c = rows.trials.c
        with opened.engine.begin() as connection:
            started = connection.execute(sa.select(c.trial_id, c.number, c.datetime_start)).all()
            for trial_id, number, start in started:
                end = start + timedelta(seconds=1 + number * 7 % 40, milliseconds=250)
                change = sa.update(rows.trials).where(c.trial_id == trial_id)
                connection.execute(change.values(datetime_complete=end))
        yield opened


def test_there_are_ten_questions_and_each_has_an_oracle() -> None:
    assert len(QUESTIONS) == 10 == PAGE.count("```sql")
    assert set(ORACLES) == set(QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda text: text.split("?")[0])
def test_the_answer_is_the_oracles(question: str, store: Store) -> None:
    found = queries.run_sql(store.url, QUESTIONS[question], {"study": "digits"})
    study = optuna.load_study(study_name="digits", storage=store.optuna_storage())
    expected = ORACLES[question](study.get_trials(deepcopy=False))
    assert expected and len(found.rows) == len(expected)
    for row, wanted in zip(found.rows, expected, strict=True):
        assert list(row) == [
            pytest.approx(value, rel=1e-9, abs=1e-9) if isinstance(value, float) else value
            for value in wanted
        ]


def test_the_sql_of_lambda_1se_is_what_sweep_best_chooses(store: Store) -> None:
    (question,) = (name for name in QUESTIONS if name.startswith("The strongest lambda"))
    ((trial, lam, _),) = queries.run_sql(store.url, QUESTIONS[question], {"study": "digits"}).rows
    found = choices(load_study(store, "digits"))
    chosen = next(choice.strongest for choice in found if choice.regularizer == "l1")
    assert chosen is not None and (chosen.number, chosen.lam) == (trial, lam)
    assert len(digits_trials()) == 40
