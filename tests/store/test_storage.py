"""The store's own laws, each on SQLite and on a real Postgres."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from sweep.errors import RequestError
from sweep.store.rows import NewTrial
from sweep.store.schema import claims
from sweep.store.storage import Finished, Store, Trial, new_worker

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "lambda": FloatDistribution(1e-6, 0.1, log=True),
    "regularizer": CategoricalDistribution(["none", "l1", None, True, 1.5]),
    "epochs": IntDistribution(1, 20),
}


def new_trials(n: int) -> list[NewTrial]:
    choices = ["none", "l1", None, 1.5]
    return [
        (
            {"lambda": 1e-3 / (i + 1), "regularizer": choices[i % 4], "epochs": 1 + i % 20},
            DISTRIBUTIONS,
        )
        for i in range(n)
    ]


def expire_leases(store: Store) -> None:
    """As if every worker had been silent for a minute."""
    with store.engine.begin() as connection:
        connection.execute(sa.update(claims).values(lease_until=claims.c.lease_until - 60))


@pytest.fixture
def store(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    # The tests' server has only just started.
    monkeypatch.setattr("sweep.store.claims.RESTART_GRACE_SECONDS", 0.0)
    with Store.open(database_url, create=True) as opened:
        yield opened


@pytest.fixture
def study(store: Store) -> int:
    return store.create_study("ridge", "minimize", {"knobs": {"fixed": {}, "varied": []}})


def complete(trial: Trial, value: float = 1.0) -> Finished:
    return Finished(trial, TrialState.COMPLETE, value)


def test_a_study_is_made_once_and_found_again(store: Store) -> None:
    made = store.create_study("a", "maximize", {"seed": 0})
    assert store.create_study("a", "minimize", {"seed": 1}) == made
    assert store.study_attrs(made) == {"seed": 0}
    store.set_study_attrs(made, {"seed": 2, "host": "x"})
    assert store.study_attrs(made) == {"seed": 2, "host": "x"}
    assert store.study_id("a") == made
    study = optuna.load_study(study_name="a", storage=store.optuna_storage())
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_an_unknown_study_is_refused_with_those_that_exist(store: Store) -> None:
    store.create_study("ridge", "minimize", {})
    with pytest.raises(RequestError, match=r"No study 'x' in .*Studies there: 'ridge'"):
        store.study_id("x")


def test_entries_added_at_once_are_all_kept(store: Store, study: int) -> None:
    def add(worker: int) -> None:
        with Store.open(store.url) as own:
            for i in range(5):
                own.append_study_attr(study, "runs", [worker, i], most=18)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(4)))
    kept = store.study_attrs(study)["runs"]
    assert len(kept) == 18 == len(set(map(tuple, kept)))
    assert [i for worker, i in kept if worker == 0] == sorted(i for w, i in kept if w == 0)


def test_numbers_are_consecutive_and_never_exceed_the_total(store: Store, study: int) -> None:
    worker = new_worker()
    first = store.create_trials(study, new_trials(3), total=5, worker=worker)
    second = store.create_trials(study, new_trials(3), total=5, worker=worker)
    assert [t.number for t in first + second] == [0, 1, 2, 3, 4]
    assert store.create_trials(study, new_trials(3), total=5, worker=worker) == []
    assert store.counts(study) == {
        "RUNNING": 5,
        "COMPLETE": 0,
        "PRUNED": 0,
        "FAIL": 0,
        "WAITING": 0,
    }


def test_trials_chosen_for_other_numbers_are_not_made(store: Store, study: int) -> None:
    worker = new_worker()
    made = store.create_trials(study, new_trials(3), total=9, worker=worker, expected_first=0)
    assert [trial.number for trial in made] == [0, 1, 2]
    late = store.create_trials(study, new_trials(3), total=9, worker=worker, expected_first=2)
    assert late == [] and sum(store.counts(study).values()) == 3


def test_numbers_go_on_after_trials_of_plain_optuna(store: Store, study: int) -> None:
    plain = optuna.load_study(study_name="ridge", storage=store.optuna_storage())
    plain.ask()
    (mine,) = store.create_trials(study, new_trials(1), total=9, worker=new_worker())
    assert mine.number == 1
    assert plain.ask().number == 2


def test_given_back_trials_are_resumed_with_the_same_number_and_parameters(
    store: Store, study: int
) -> None:
    first, second = new_worker(), new_worker()
    made = store.create_trials(study, new_trials(4), total=4, worker=first)
    store.give_back(made[:2], first)
    assert store.counts(study)["WAITING"] == 2
    resumed = store.resume_trials(study, limit=9, worker=second)
    assert resumed == made[:2]
    assert store.resume_trials(study, limit=9, worker=second) == []
    assert store.finish_trials([complete(t) for t in made], first) == [False, False, True, True]
    assert store.finish_trials([complete(t) for t in resumed], second) == [True, True]


def test_a_lost_workers_trials_are_taken_over_and_its_late_results_discarded(
    store: Store, study: int
) -> None:
    lost, heir = new_worker(), new_worker()
    (trial,) = store.create_trials(study, new_trials(1), total=1, worker=lost)
    store.report({trial.trial_id: {0: 0.5}})
    assert store.resume_trials(study, limit=1, worker=heir) == []
    expire_leases(store)
    (taken,) = store.resume_trials(study, limit=1, worker=heir)
    assert (taken.number, taken.params, taken.attempts) == (0, trial.params, 2)
    assert store.heartbeat(lost) == set()
    assert store.heartbeat(heir) == {trial.trial_id}
    assert store.finish_trials([complete(trial, 9.0)], lost) == [False]
    assert store.finish_trials([complete(taken, 1.0)], heir) == [True]
    (finished,), _ = store.finished_since(study)
    assert finished.value == 1.0
    assert finished.intermediate_values == {}


def test_nobody_is_lost_while_the_server_has_only_just_started(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.store.claims.RESTART_GRACE_SECONDS", 1e6)
    with Store.open(postgres_url, create=True) as store:
        study = store.create_study("ridge", "minimize", {})
        store.create_trials(study, new_trials(1), total=1, worker=new_worker())
        expire_leases(store)
        assert store.resume_trials(study, limit=1, worker=new_worker()) == []
        monkeypatch.setattr("sweep.store.claims.RESTART_GRACE_SECONDS", 0.0)
        assert len(store.resume_trials(study, limit=1, worker=new_worker())) == 1


def test_a_silent_worker_that_nobody_replaced_keeps_its_trials(store: Store, study: int) -> None:
    worker = new_worker()
    (trial,) = store.create_trials(study, new_trials(1), total=1, worker=worker)
    expire_leases(store)
    assert store.heartbeat(worker) == {trial.trial_id}
    assert store.resume_trials(study, limit=1, worker=new_worker()) == []
    assert store.finish_trials([complete(trial)], worker) == [True]


def test_a_trial_that_loses_three_workers_fails_as_worker_lost(store: Store, study: int) -> None:
    store.create_trials(study, new_trials(1), total=1, worker=new_worker())
    for attempts in (2, 3):
        expire_leases(store)
        (taken,) = store.resume_trials(study, limit=1, worker=new_worker())
        assert taken.attempts == attempts
    expire_leases(store)
    assert store.resume_trials(study, limit=1, worker=new_worker()) == []
    (failed,), _ = store.finished_since(study)
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["failure"]["kind"] == "worker_lost"


def test_giving_back_does_not_count_as_losing_a_worker(store: Store, study: int) -> None:
    worker = new_worker()
    trials = store.create_trials(study, new_trials(1), total=1, worker=worker)
    for _ in range(5):
        store.give_back(trials, worker)
        worker = new_worker()
        trials = store.resume_trials(study, limit=1, worker=worker)
    assert [trial.attempts for trial in trials] == [1]


def test_running_trials_of_plain_optuna_are_left_alone(store: Store, study: int) -> None:
    plain = optuna.load_study(study_name="ridge", storage=store.optuna_storage())
    plain.ask()
    plain.enqueue_trial({"x": 1})
    assert store.resume_trials(study, limit=9, worker=new_worker()) == []


def test_a_trial_ended_from_outside_keeps_that_end(store: Store, study: int) -> None:
    worker = new_worker()
    (trial,) = store.create_trials(study, new_trials(1), total=1, worker=worker)
    plain = optuna.load_study(study_name="ridge", storage=store.optuna_storage())
    plain.tell(0, state=TrialState.FAIL)
    assert store.heartbeat(worker) == set()
    assert store.finish_trials([complete(trial)], worker) == [False]
    assert plain.trials[0].state == TrialState.FAIL
    with store.engine.connect() as connection:
        assert connection.execute(sa.select(claims)).all() == []


def test_deleting_a_study_with_optuna_deletes_its_claims(store: Store, study: int) -> None:
    worker = new_worker()
    store.create_trials(study, new_trials(2), total=2, worker=worker)
    optuna.delete_study(study_name="ridge", storage=store.optuna_storage())
    assert store.heartbeat(worker) == set()


def test_the_cursor_yields_every_finished_trial_exactly_once(store: Store, study: int) -> None:
    worker = new_worker()
    made = store.create_trials(study, new_trials(6), total=9, worker=worker)
    seen, cursor = store.finished_since(study)
    assert seen == []
    store.finish_trials([complete(t) for t in (made[3], made[0])], worker)
    seen, cursor = store.finished_since(study, cursor)
    assert [t.number for t in seen] == [0, 3]
    more = store.create_trials(study, new_trials(1), total=9, worker=worker)
    store.finish_trials([complete(t) for t in (made[5], *more)], worker)
    seen, cursor = store.finished_since(study, cursor)
    assert [t.number for t in seen] == [5, 6]
    assert store.finished_since(study, cursor) == ([], cursor)


def test_bulk_rows_are_those_optuna_writes(store: Store, study: int) -> None:
    """The same trials told by Optuna and by the store: equal in every row Optuna reads."""
    worker = new_worker()
    reports = {0: 2.0, 1: math.inf, 2: -math.inf, 3: 0.25, 4: math.nan}
    attrs = {"fold_scores": [0.1, None], "text": "naïve ✓ \"'", "flag": True, "nested": {"a": [1]}}
    made = store.create_trials(
        study, new_trials(8), total=8, worker=worker, user_attrs=[{"index": i} for i in range(8)]
    )
    other = store.create_study("plain", "minimize", {})
    plain = optuna.load_study(study_name="plain", storage=store.optuna_storage())
    ends = []
    for i, (chosen, distributions) in enumerate(new_trials(8)):
        trial = plain.ask()
        for name, value in chosen.items():
            plain._storage.set_trial_param(
                trial._trial_id,
                name,
                distributions[name].to_internal_repr(value),
                distributions[name],
            )
        for key, each in {"index": i, **attrs}.items():
            trial.set_user_attr(key, each)
        pruned_reports = {step: reports[step] for step in (range(i % 5 + 1) if i else [])}
        for step, value in pruned_reports.items():
            plain._storage.set_trial_intermediate_value(trial._trial_id, step, value)
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[i % 3]
        value = 0.5 * i if state == TrialState.COMPLETE else None
        plain.tell(trial._trial_id and trial, value, state)
        ends.append(Finished(made[i], state, value, pruned_reports, attrs))
    assert store.finish_trials(ends, worker) == [True] * 8

    assert [comparable(t) for t in store.finished_since(study)[0]] == [
        {**comparable(t), "_trial_id": mine.trial_id}
        for t, mine in zip(store.finished_since(other)[0], made, strict=True)
    ]
    ours = optuna.load_study(study_name="ridge", storage=store.optuna_storage())
    read_back = store.finished_since(study)[0]
    for optunas, stores in zip(ours.trials, read_back, strict=True):
        assert comparable(optunas) == comparable(stores)
        assert optunas.datetime_start == stores.datetime_start
        assert optunas.datetime_complete == stores.datetime_complete
    assert raw_rows(store, study) == raw_rows(store, other)


def comparable(trial: optuna.trial.FrozenTrial) -> dict[str, object]:
    """A trial's fields but for its times; NaN equals NaN, attributes come in any order."""
    shown: dict[str, object] = {}
    for name, field in vars(trial).items():
        if "datetime" not in name:
            shown[name] = repr(sorted(field.items()) if "attrs" in name else field)
    return {**shown, "_trial_id": trial._trial_id}


def raw_rows(store: Store, study: int) -> list[tuple[object, ...]]:
    """Every stored column of a study's trials that is no id and no time, as the driver sees it."""
    number = "SELECT t.number, x.{} FROM {} x JOIN trials t ON t.trial_id = x.trial_id"
    tables = {
        "trial_params": "param_name, x.param_value, x.distribution_json",
        "trial_values": "objective, x.value, x.value_type",
        "trial_intermediate_values": "step, x.intermediate_value, x.intermediate_value_type",
        "trial_user_attributes": "key, x.value_json",
        "trial_system_attributes": "key, x.value_json",
    }
    found: list[tuple[object, ...]] = []
    with store.engine.connect() as connection:
        for table, columns in tables.items():
            sql = f"{number.format(columns, table)} WHERE t.study_id = {study}"
            found += sorted(
                (table, *map(str, row)) for row in connection.exec_driver_sql(sql).all()
            )
    return found


def test_no_bare_nan_reaches_the_json_columns(store: Store, study: int) -> None:
    worker = new_worker()
    (trial,) = store.create_trials(study, new_trials(1), total=1, worker=worker)
    attrs = {"scores": [math.nan, math.inf, 1.0], "failure": {"loss": -math.inf, "why": "\0"}}
    store.finish_trials([Finished(trial, TrialState.FAIL, user_attrs=attrs)], worker)
    (stored,), _ = store.finished_since(study)
    assert stored.user_attrs == {
        "scores": [None, None, 1.0],
        "failure": {"loss": None, "why": "�"},
    }


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_complete_trial_needs_a_finite_value(value: float | None) -> None:
    with pytest.raises(ValueError, match="COMPLETE with value"):
        Finished(Trial(0, 0, {}), TrialState.COMPLETE, value)


@pytest.mark.parametrize(
    "name", ["it's; DROP TABLE trials --", 'a "b" \\ %s %(x)s :y', "λ-Übung", " "]
)
def test_study_names_are_only_names(store: Store, name: str) -> None:
    made = store.create_study(name, "minimize", {name: name})
    assert store.study_id(name) == made
    assert store.studies() == [name]
    assert store.study_attrs(made) == {name: name}


@pytest.mark.parametrize("name", ["", "x" * 10_000, "a\0b"])
def test_impossible_study_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(RequestError, match="1 to 512 characters"):
        store.create_study(name, "minimize", {})
    with pytest.raises(RequestError, match="No study"):
        store.study_id(name)
