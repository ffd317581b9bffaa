"""The views against `study.trials`, the oracle, on SQLite and on Postgres."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from sweep.store.queries import studies
from sweep.store.storage import Finished, Store, new_worker
from sweep.store.views import refresh_views

Row = dict[str, Any]


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store.open(database_url, create=True) as opened:
        yield opened


def ask(store: Store, sql: str, **params: object) -> list[Row]:
    with store.engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.text(sql), params).mappings()]


def columns(store: Store, view: str = "sweep_trials") -> list[str]:
    with store.engine.connect() as connection:
        return list(connection.execute(sa.text(f"SELECT * FROM {view} WHERE 1 = 0")).keys())


FIXED = {
    "momentum": 0.9,
    "epochs": 20,
    "hidden": [64, 64],
    "bias": True,
    "clip_norm": None,
    "optimizer": "sgd",
    "train.momentum": "it's",
    "size": 3,
}
SPACE = {
    "lambda": FloatDistribution(1e-6, 0.1, log=True),
    "regularizer": CategoricalDistribution(["none", "l1", "l2"]),
    "size": IntDistribution(1, 9),
    "clip_value": CategoricalDistribution([None, 1.0, 5]),
    "widths": CategoricalDistribution(["[8, 8]", "[16]"]),
}
FAILURE = {
    "kind": "divergence",
    "reason": "nonfinite_loss",
    "fold": 3,
    "epoch": 1,
    "step": 39,
    "layer": "0.weight",
    "loss": None,
    "grad_norm": 1e30,
    "message": "Die Norm ist größer; 'x'",
    "advice": "kleinere learning_rate",
    "last_losses": [1.0, 2.0],
}


def sweep_study(store: Store, name: str = "ridge", n: int = 9) -> int:
    """A study as sweep writes it: a third COMPLETE, a third PRUNED, a third FAIL."""
    knobs = {"fixed": {k: v for k, v in FIXED.items() if k != "size"}, "varied": list(SPACE)}
    study = store.create_study(name, "minimize", {"knobs": knobs})
    worker = new_worker()
    rng = [
        (
            {
                "lambda": 10.0 ** -(1 + i % 5),
                "regularizer": ["none", "l1", "l2"][i % 3],
                "size": 1 + i,
                "clip_value": [None, 1.0, 5][i // 3 % 3],
                "widths": ["[8, 8]", "[16]"][i % 2],
            },
            SPACE,
        )
        for i in range(n)
    ]
    ends = []
    for i, trial in enumerate(store.create_trials(study, rng, total=n, worker=worker)):
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[i % 3]
        attrs: Row = {"fold_scores": [0.1 * i, None, 2.0], "score_se": 0.5}
        if state == TrialState.FAIL:
            attrs = {"failure": FAILURE}
        value = 0.25 * i if state == TrialState.COMPLETE else None
        ends.append(Finished(trial, state, value, {0: 1.0}, attrs))
    assert all(store.finish_trials(ends, worker))
    return study


def test_every_trial_is_a_row_equal_to_optunas(store: Store) -> None:
    sweep_study(store)
    trials = optuna.load_study(study_name="ridge", storage=store.optuna_storage()).trials
    rows = ask(store, "SELECT * FROM sweep_trials WHERE study = 'ridge' ORDER BY trial")
    assert len(rows) == len(trials) == 9
    for row, trial in zip(rows, trials, strict=True):
        assert (row["trial"], row["state"]) == (trial.number, trial.state.name)
        complete = trial.state == TrialState.COMPLETE
        assert row["score"] == (trial.value if complete else None)
        for name, value in trial.params.items():
            assert row[name] == value, name
        assert row["score_se"] == trial.user_attrs.get("score_se")
        failure = trial.user_attrs.get("failure", {})
        assert row["failure_kind"] == failure.get("kind")
        assert row["failure_reason"] == failure.get("reason")
        assert trial.duration is not None
        assert row["seconds"] == pytest.approx(trial.duration.total_seconds(), abs=2e-3)
        assert str(row["started"])[:10].count("-") == 2


def test_fixed_knobs_are_columns_of_their_kind(store: Store) -> None:
    sweep_study(store)
    row = ask(store, "SELECT * FROM sweep_trials WHERE trial = 0")[0]
    assert row["momentum"] == 0.9 and isinstance(row["momentum"], float)
    assert row["epochs"] == 20 and isinstance(row["epochs"], int)
    assert row["hidden"] == "[64, 64]"
    assert row["bias"] == "true"
    assert row["clip_norm"] is None
    assert row["optimizer"] == "sgd"
    assert row["train.momentum"] == "it's"


def test_a_knob_is_numeric_only_where_every_study_says_so(store: Store) -> None:
    for name, size in (("a", 64), ("b", None), ("c", 0.5)):
        study = store.create_study(name, "minimize", {"knobs": {"fixed": {"size": size}}})
        store.create_trials(study, [({}, {})], total=1, worker=new_worker())
    assert [r["size"] for r in ask(store, "SELECT size FROM sweep_trials ORDER BY study")] == [
        64.0,
        None,
        0.5,
    ]
    study = store.create_study("d", "minimize", {"knobs": {"fixed": {"size": "full"}}})
    store.create_trials(study, [({}, {})], total=1, worker=new_worker())
    assert [r["size"] for r in ask(store, "SELECT size FROM sweep_trials ORDER BY study")] == [
        "64",
        None,
        "0.5",
        "full",
    ]


def test_varied_and_fixed_values_of_one_knob_share_its_column(store: Store) -> None:
    sweep_study(store)
    other = store.create_study("other", "maximize", {"knobs": {"fixed": {"lambda": 0.5}}})
    store.create_trials(other, [({}, {})], total=1, worker=new_worker())
    rows = ask(
        store, 'SELECT study, "lambda" FROM sweep_trials ORDER BY study DESC, trial LIMIT 10'
    )
    assert rows[0] == {"study": "ridge", "lambda": 0.1}
    assert rows[-1] == {"study": "other", "lambda": 0.5}


def test_folds_are_rows(store: Store) -> None:
    sweep_study(store)
    assert columns(store, "sweep_folds") == ["study", "trial", "fold", "score"]
    rows = ask(store, "SELECT * FROM sweep_folds WHERE trial = 3 ORDER BY fold")
    assert [(r["fold"], r["score"]) for r in rows] == [
        (0, pytest.approx(0.3)),
        (1, None),
        (2, 2.0),
    ]


def test_failures_are_rows_with_all_their_knobs(store: Store) -> None:
    sweep_study(store)
    rows = ask(store, "SELECT * FROM sweep_failures ORDER BY trial")
    assert list(rows[0]) == [
        "study",
        "trial",
        "kind",
        "reason",
        "fold",
        "epoch",
        "step",
        "layer",
        "loss",
        "grad_norm",
        "message",
        "advice",
        "parameters",
    ]
    assert [r["trial"] for r in rows] == [2, 5, 8]
    for name in ("kind", "reason", "fold", "epoch", "step", "layer", "loss", "grad_norm", "advice"):
        assert rows[0][name] == FAILURE[name], name
    assert rows[0]["message"] == FAILURE["message"]
    trials = optuna.load_study(study_name="ridge", storage=store.optuna_storage()).trials
    for row in rows:
        expected = {k: v for k, v in FIXED.items() if k != "size"} | trials[row["trial"]].params
        assert json.loads(row["parameters"]) == expected


def test_studies_are_counted(store: Store) -> None:
    study = sweep_study(store)
    (row,) = ask(store, "SELECT * FROM sweep_studies")
    assert (row["study"], row["direction"], row["best_score"]) == ("ridge", "minimize", 0.0)
    counts = store.counts(study)
    assert {name: row[name] for name in ("complete", "pruned", "failed", "running", "waiting")} == {
        "complete": counts["COMPLETE"],
        "pruned": counts["PRUNED"],
        "failed": counts["FAIL"],
        "running": 0,
        "waiting": 0,
    }


AWKWARD = {
    "state": 1.0,
    "Lambda": 2.0,
    "LAMBDA": 3.0,
    "a.b": 4.0,
    'with "quotes"; --': 5.0,
    "it's": 6.0,
    "50% :x %s": 7.0,
    "λ": 8.0,
    "x" * 100: 9.0,
    "x" * 101: 10.0,
    "select": 11.0,
}


def test_a_study_of_plain_optuna_works_whatever_its_names(store: Store) -> None:
    storage = store.optuna_storage()
    study = optuna.create_study(study_name="p'l\"ain", storage=storage, directions=["maximize"] * 2)
    trial = study.ask()
    for name, value in AWKWARD.items():
        trial.suggest_float(name, value, value)
    trial.suggest_categorical("odd", [math.nan, math.inf, "NaN"])
    trial.suggest_categorical("flag", [True, False])
    trial.set_user_attr("failure", "just text")
    trial.set_user_attr("score_se", math.nan)
    trial.set_user_attr("fold_scores", {"not": "a list"})
    study.set_user_attr("knobs", ["not", "an", "object"])
    study.tell(trial, [math.inf, 0.0])
    study.tell(study.ask(), state=TrialState.FAIL)
    with store.engine.begin() as connection:
        refresh_views(connection)
    rows = ask(store, "SELECT * FROM sweep_trials ORDER BY trial")
    numbers = sorted(v for v in rows[0].values() if isinstance(v, float) and 1 <= v <= 11)
    assert numbers == [float(i) for i in range(1, 12)]
    assert rows[0]["params.state"] == 1.0
    assert rows[0]["score"] == math.inf
    best = ask(store, "SELECT best_score FROM sweep_studies WHERE study LIKE '%ain'")
    assert best == [{"best_score": math.inf}]
    assert rows[0]["flag"] == ("true" if trial.params["flag"] else "false")
    assert rows[0]["odd"] is None
    assert rows[0]["score_se"] is None
    assert ask(store, "SELECT * FROM sweep_folds") == []
    (failure,) = ask(store, "SELECT trial, kind, parameters FROM sweep_failures")
    assert failure == {"trial": 1, "kind": None, "parameters": "{}"}


def test_views_that_need_not_change_are_left_alone(store: Store) -> None:
    sweep_study(store)
    before = columns(store)
    with store.engine.connect() as connection, connection.begin():
        identity = {
            "sqlite": "SELECT max(rowid) FROM sqlite_master",
            "postgresql": "SELECT 'sweep_trials'::regclass::oid::bigint",
        }[connection.dialect.name]
        first = connection.exec_driver_sql(identity).scalar()
        refresh_views(connection)
        assert connection.exec_driver_sql(identity).scalar() == first
    sweep_study(store, "second")
    assert columns(store) == before


def test_hundreds_of_knobs_fit(store: Store) -> None:
    fixed = {f"knob_{i}": i for i in range(400)}
    study = store.create_study("wide", "minimize", {"knobs": {"fixed": fixed, "varied": []}})
    store.create_trials(study, [({}, {})], total=1, worker=new_worker())
    (row,) = ask(store, "SELECT * FROM sweep_trials")
    assert {name: row[name] for name in fixed} == fixed


@pytest.mark.parametrize("hindrance", ["a view of one's own", "an open transaction"])
def test_a_study_is_made_even_where_the_views_cannot_be_renewed(
    postgres_url: str, hindrance: str
) -> None:
    with Store.open(postgres_url, create=True) as store:
        sweep_study(store)
        with store.engine.connect() as other:
            if hindrance == "an open transaction":
                other.exec_driver_sql("SELECT * FROM sweep_trials")
            else:
                other.exec_driver_sql("CREATE VIEW mine AS SELECT study FROM sweep_trials")
                other.commit()
            attrs = {"knobs": {"fixed": {"brand_new": 1}}}
            store.create_study("second", "minimize", attrs)
            assert "brand_new" not in columns(store)
            other.exec_driver_sql("DROP VIEW IF EXISTS mine")
            other.commit()
    studies(postgres_url)
    with Store.open(postgres_url) as store:
        assert "brand_new" in columns(store)
