"""A copy holds what the original holds: between SQLite and Postgres, and from plain Optuna."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.errors import RequestError
from sweep.store import queries, rows
from sweep.store.connection import connect
from sweep.store.copying import copy_studies, study_names
from sweep.store.export import save_copy
from sweep.store.storage import Store, new_worker
from tests.store.studies import SPACE, plain_optuna, small_study


def plain_study(storage: optuna.storages.RDBStorage, name: str = "plain") -> optuna.Study:
    """A study of plain Optuna with a trial in every state, and what only Optuna writes."""
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    study.set_user_attr("owner", "Ada")
    study._storage.set_study_system_attr(study._study_id, "made_by", "hand")
    space = {"x": FloatDistribution(0, 1)}
    for i, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)):
        study.add_trial(
            create_trial(
                state=state,
                value=None if state == TrialState.FAIL else float("inf") if i else 0.5,
                params={"x": i / 4},
                distributions=space,
                user_attrs={"n": i, "quote": "a'b\"; é", "nan": float("nan")},
                system_attrs={"s": [i]},
                intermediate_values={0: 1.0, 1: float("inf"), 2: float("nan")},
            )
        )
    study.enqueue_trial({"x": 0.25})
    study.ask(space).report(3.0, 7)
    study.enqueue_trial({"x": 0.75})
    return study


def described(trial: FrozenTrial) -> dict[str, Any]:
    """All of a trial but its id; NaN as text, which equals itself."""
    attrs = {k: None if v != v else v for k, v in trial.user_attrs.items()}
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values,
        "start": trial.datetime_start,
        "complete": trial.datetime_complete,
        "params": trial.params,
        "distributions": trial.distributions,
        "user_attrs": attrs,
        "system_attrs": trial.system_attrs,
        "intermediate": {k: repr(v) for k, v in trial.intermediate_values.items()},
    }


def optuna_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'plain.db'}"


def test_a_plain_study_arrives_as_it_was(database_url: str, tmp_path: Path) -> None:
    source = optuna_url(tmp_path)
    with plain_optuna(source) as storage:
        original = plain_study(storage)
        trials = list(map(described, original.trials))
    (copied,) = copy_studies(source, database_url)
    assert (copied.name, copied.trials) == ("plain", 5)
    with Store.open(database_url) as store:
        copy = optuna.load_study(study_name="plain", storage=store.optuna_storage())
        assert copy.direction == optuna.study.StudyDirection.MAXIMIZE
        assert copy.user_attrs == {"owner": "Ada"}
        system = store.optuna_storage().get_study_system_attrs(copy._study_id)
        assert system["made_by"] == "hand"
        assert list(map(described, copy.trials)) == trials
    # And the source is plain Optuna's still.
    with sqlite3.connect(tmp_path / "plain.db") as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'sweep%'")
        assert tables.fetchall() == []
    connection.close()


def test_the_views_of_a_copy_say_the_same(database_url: str, tmp_path: Path) -> None:
    with Store.open(database_url, create=True) as store:
        small_study(store, n=12)
    for file in ("there.db", "back.db"):
        copy_studies(database_url, f"sqlite:///{tmp_path / file}", {"ridge": "ridge"})
    copy_studies(f"sqlite:///{tmp_path / 'back.db'}", database_url, {"ridge": "again"})
    for question in (queries.trials, queries.folds, queries.diverged):
        original: Any = question(database_url, "ridge")
        back: Any = question(database_url, "again")
        assert len(original) > 0
        assert [r[1:] for r in back.rows] == [r[1:] for r in original.rows]
        there = question(f"sqlite:///{tmp_path / 'there.db'}", "ridge")
        assert len(there) == len(original)


def test_a_trial_in_training_is_given_back_in_the_copy(database_url: str, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path / 'copy.db'}"
    worker = new_worker()
    with Store.open(database_url, create=True) as store:
        study = small_study(store, n=3)
        new = [({"lambda": 0.01, "regularizer": "l1"}, SPACE)]
        (running,) = store.create_trials(study, new, total=4, worker=worker)
        store.report({running.trial_id: {0: 1.0, 1: 2.0}})
        copy_studies(database_url, target)
        assert store.heartbeat(worker) == {running.trial_id}
    with Store.open(target) as copy:
        assert copy.counts(copy.study_id("ridge"))["WAITING"] == 1
        (taken,) = copy.resume_trials(copy.study_id("ridge"), limit=9, worker=new_worker())
        assert (taken.number, taken.params, taken.attempts) == (3, running.params, 1)
        trial = copy.optuna_storage().get_trial(taken.trial_id)
        assert trial.intermediate_values == {}


def test_all_or_none_and_names_are_not_taken_twice(database_url: str, tmp_path: Path) -> None:
    source = optuna_url(tmp_path)
    with plain_optuna(source) as storage:
        plain_study(storage, "one")
        plain_study(storage, "two")
    assert study_names(source) == ["one", "two"]
    with Store.open(database_url, create=True) as store:
        small_study(store, "two", n=3)
        with pytest.raises(RequestError, match=r"study 'two' in .* already.* --name"):
            copy_studies(source, database_url)
        assert store.studies() == ["two"]
        with pytest.raises(RequestError, match=r"No study 'tow' in .* Did you mean 'two'"):
            copy_studies(source, database_url, {"tow": "three"})
        copy_studies(source, database_url, {"two": "three"})
        assert store.studies() == ["two", "three"]


def test_there_must_be_a_source(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No study database"):
        copy_studies(f"sqlite:///{tmp_path / 'none.db'}", database_url)
    assert not (tmp_path / "none.db").exists()


def test_notes_on_trials_follow_their_trials(database_url: str, tmp_path: Path) -> None:
    from optuna_dashboard import get_note, save_note

    source = optuna_url(tmp_path)
    with plain_optuna(source) as storage:
        study = optuna.create_study(storage=storage, study_name="noted")
        for i in range(3):
            save_note(study.ask(), f"note {i}")
        save_note(study, "of all")
    with Store.open(database_url, create=True) as store:
        small_study(store, "first", n=3)  # so that ids differ
        copy_studies(source, database_url)
        copy = optuna.load_study(study_name="noted", storage=store.optuna_storage())
        assert get_note(copy) == "of all"
        for trial in copy.trials:
            handle: Any = optuna.trial.Trial(copy, trial._trial_id)
            assert get_note(handle) == f"note {trial.number}"


def test_a_saved_copy_is_one_file_that_optuna_reads(database_url: str, tmp_path: Path) -> None:
    with Store.open(database_url, create=True) as store:
        small_study(store, n=9)
        small_study(store, "other", n=3)
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "ridge.sqlite"
    assert save_copy(database_url, "ridge", target).trials == 9
    assert [path.name for path in folder.iterdir()] == ["ridge.sqlite"]
    target.chmod(0o444)
    with sqlite3.connect(f"file:{target}?mode=ro&immutable=1", uri=True) as connection:
        count = "SELECT count(*), count(DISTINCT study) FROM sweep_trials"
        assert connection.execute(count).fetchone() == (9, 1)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    target.chmod(0o644)
    with plain_optuna(f"sqlite:///{target}") as storage:
        study = optuna.load_study(study_name="ridge", storage=storage)
        assert study.best_value == 0.0 and len(study.trials) == 9


def test_a_copy_that_fails_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    with Store.open(database_url, create=True) as store:
        small_study(store, n=3)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(RequestError, match="No study 'nope'"):
        save_copy(database_url, "nope", folder / "nope.db")
    assert list(folder.iterdir()) == []


def test_thousands_of_trials_in_pieces(tmp_path: Path) -> None:
    source, target = (f"sqlite:///{tmp_path / name}.db" for name in ("a", "b"))
    with Store.open(source, create=True) as store:
        small_study(store, n=2100)
    (copied,) = copy_studies(source, target)
    assert copied.trials == 2100

    def all_of(url: str, table: sa.Table, columns: Callable[[sa.Table], list[Any]]) -> list[Any]:
        engine = connect(url)
        with engine.connect() as connection:
            found = connection.execute(sa.select(*columns(table))).all()
        engine.dispose()
        return sorted(map(repr, found))

    for table in (rows.params, rows.values, rows.intermediates, rows.user_attrs):
        (own,) = table.primary_key.columns
        names = [c.name for c in table.columns if c.name != own.name]
        pick = lambda t: [t.c[name] for name in names]  # noqa: E731, B023
        assert all_of(source, table, pick) == all_of(target, table, pick)
