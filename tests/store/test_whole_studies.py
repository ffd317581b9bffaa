"""Deleting, renaming and merging: exact, refused while trials are in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from sweep.errors import RequestError, StorageError
from sweep.store import queries, rows
from sweep.store.schema import claims
from sweep.store.storage import Finished, Store, new_worker
from sweep.store.studies import check_deletable, delete_study, merge_studies, rename_study
from tests.store.studies import SPACE, small_study
from tests.stored_studies import ATTRS, digits_trials, fill

NEW = [({"lambda": 0.01, "regularizer": "l1"}, SPACE)]


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store.open(database_url, create=True) as opened:
        yield opened


def rows_left(store: Store) -> dict[str, int]:
    """How many rows each table holds, but for versions."""
    inspector = sa.inspect(store.engine)
    with store.engine.connect() as connection:
        return {
            table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            for table in inspector.get_table_names()
            if "version" not in table
        }


def test_nothing_is_left_of_a_deleted_study(store: Store) -> None:
    empty = rows_left(store)
    small_study(store, "kept", n=6)
    before = rows_left(store)
    study = small_study(store, "gone", n=7)
    given_back = store.create_trials(study, NEW, total=8, worker="w")
    store.give_back(given_back, "w")
    storage = store.optuna_storage()
    storage.set_study_system_attr(study, "note", "x")
    storage.set_trial_system_attr(storage.create_new_trial(study), "a", 1)
    assert check_deletable(store, "gone") == 9
    assert delete_study(store, "gone") == 9
    assert rows_left(store) == before
    assert store.studies() == ["kept"]
    delete_study(store, "kept")
    assert rows_left(store) == empty


def test_a_deleted_studys_columns_leave_the_views(store: Store, database_url: str) -> None:
    small_study(store, "kept", n=3)
    fill(database_url, "gone")
    assert "learning_rate" in queries.run_sql(database_url, "SELECT * FROM sweep_trials").columns
    delete_study(store, "gone")
    found = queries.run_sql(database_url, "SELECT * FROM sweep_trials")
    assert "learning_rate" not in found.columns and len(found) == 3


def test_a_study_in_training_is_neither_deleted_nor_renamed_nor_merged(store: Store) -> None:
    study = small_study(store, n=3)
    worker = new_worker()
    (trial,) = store.create_trials(study, NEW, total=4, worker=worker)
    for attempt in (
        lambda: delete_study(store, "ridge"),
        lambda: check_deletable(store, "ridge"),
        lambda: rename_study(store, "ridge", "lasso"),
    ):
        with pytest.raises(
            RequestError, match=r"being run: 1 trial is in training by process \d+ on "
        ):
            attempt()
    # A dead worker's lease runs out; a trial that was given back is nobody's.
    with store.engine.begin() as connection:
        connection.execute(sa.update(claims).values(lease_until=1.0))
    rename_study(store, "ridge", "lasso")
    with store.engine.begin() as connection:
        connection.execute(sa.update(claims).values(lease_until=1e12))
    assert delete_study(store, "lasso", force=True) == 4
    # The worker that still trains it hears of it, and harms nobody.
    assert store.finish_trials([Finished(trial, TrialState.COMPLETE, 1.0)], worker) == [False]
    assert store.heartbeat(worker) == set()


def test_a_worker_of_a_deleted_study_never_adds_to_the_study_that_has_its_id(
    store: Store, database_url: str
) -> None:
    study = small_study(store, "gone", n=3)
    with Store.open(database_url) as other:
        delete_study(other, "gone", force=True)
        for again in ("make trials", "make trials of the next study"):
            with pytest.raises(StorageError, match="'gone' was deleted or renamed while it ran"):
                store.create_trials(study, NEW, total=9, worker="w")
            with pytest.raises(StorageError, match="'gone' was deleted"):
                store.resume_trials(study, limit=9, worker="w")
            if again == "make trials":
                small_study(other, "next", n=3)
        assert sum(other.counts(other.study_id("next")).values()) == 3


@pytest.mark.parametrize("new", ["lasso", "a'b\"c; DROP TABLE studies --", "é" * 512])
def test_a_renamed_study_is_the_same_study(store: Store, database_url: str, new: str) -> None:
    study = small_study(store, n=6)
    small_study(store, "other", n=3)
    before = queries.trials(database_url, "ridge").rows
    rename_study(store, "ridge", new)
    assert store.study_id(new) == study
    assert [row[1:] for row in queries.trials(database_url, new).rows] == [r[1:] for r in before]
    with pytest.raises(RequestError, match="No study 'ridge'"):
        store.study_id("ridge")
    with pytest.raises(RequestError, match="already"):
        rename_study(store, new, "other")
    with pytest.raises(RequestError, match="1 to 512 characters"):
        rename_study(store, new, "")
    with pytest.raises(RequestError, match="No study 'nope'"):
        rename_study(store, "nope", "more")


def test_merged_studies_are_numbered_on(store: Store, database_url: str) -> None:
    trials = digits_trials()
    fill(database_url, "a", trials[:25])
    fill(database_url, "b", trials[25:])
    originals = [queries.trials(database_url, name).rows for name in ("a", "b")]
    merged = merge_studies(store, ["a", "b"], "c")
    assert [(copied.source, copied.trials) for copied in merged] == [("a", 25), ("b", 15)]
    found = optuna.load_study(study_name="c", storage=store.optuna_storage()).trials
    assert [trial.number for trial in found] == list(range(40))
    assert [trial.params for trial in found] == [trial["params"] for trial in trials]
    assert [trial.value for trial in found] == [trial["value"] for trial in trials]
    assert [trial.user_attrs for trial in found] == [trial["attrs"] for trial in trials]
    attrs = store.study_attrs(store.study_id("c"))
    assert attrs["spec"]["trials"] == 40 and attrs["data"] == ATTRS["data"]
    assert [(p["study"], p["first"], p["trials"]) for p in attrs["merged"]] == [
        ("a", 0, 25),
        ("b", 25, 15),
    ]
    assert [queries.trials(database_url, name).rows for name in ("a", "b")] == originals
    # It goes on where it ends.
    (made,) = store.create_trials(store.study_id("c"), NEW, total=99, worker="w")
    assert made.number == 40


def changed(**changes: Any) -> dict[str, Any]:
    spec = {**ATTRS["spec"], **changes.pop("spec", {})}
    return {**ATTRS, "spec": spec, **changes}


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        (changed(spec={"seed": 1}), "seed: nothing -> 1"),
        (changed(spec={"train": {"early_stopping": {"on": "fold"}}}), "train.early_stopping"),
        (changed(data={**ATTRS["data"], "sha256": "1" * 64}), "data.sha256: 000"),
        (changed(data={**ATTRS["data"], "folds": list("abcdx")}), "data.folds"),
        ({"owner": "Ada"}, "'b' was not made by sweep"),
    ],
)
def test_studies_whose_scores_do_not_compare_are_not_merged(
    attrs: dict[str, Any], why: str, tmp_path: Any
) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url, "a", digits_trials()[:3])
    fill(url, "b", digits_trials()[:3], attrs=attrs)
    with Store.open(url) as store:
        with pytest.raises(RequestError, match=why):
            merge_studies(store, ["a", "b"], "c")
        assert store.studies() == ["a", "b"]


def test_what_only_chooses_trials_may_differ_in_a_merger(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url, "a", digits_trials()[:3])
    other = changed(spec={"sampler": "random", "trials": 7, "concurrency": 2, "enqueue": [{}]})
    fill(url, "b", digits_trials()[:3], attrs=other)
    with Store.open(url) as store:
        merge_studies(store, ["a", "b"], "c")
        assert sum(store.counts(store.study_id("c")).values()) == 6
        for wrong in (["a"], ["a", "a"], ["a", "b", "a"]):
            with pytest.raises(RequestError, match="two or more different studies"):
                merge_studies(store, wrong, "d")
        with pytest.raises(RequestError, match=r"study 'b' .* already.* --into"):
            merge_studies(store, ["a", "b"], "b")
        with pytest.raises(RequestError, match="No study 'x'"):
            merge_studies(store, ["a", "x"], "d")
        with store.engine.connect() as connection:
            assert connection.execute(sa.select(sa.func.count(rows.studies.c.study_id))).scalar()
