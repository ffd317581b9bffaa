"""The study's note is what Optuna's dashboard shows, and says what is in the database."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from sweep.insight.note import HEADING, Notes, note_text, save_note, with_text
from sweep.insight.stored import load_study, snapshots
from sweep.insight.summary import summarize
from sweep.search.status import Silent, Status
from sweep.store.note import PIECE_LENGTH, note, write_note
from sweep.store.storage import Store, new_worker
from tests.stored_studies import ATTRS, SPACE, complete, digits_trials, diverged, fill

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import optuna_dashboard


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    fill(database_url)
    with Store.open(database_url) as opened:
        yield opened


def shown(store: Store, name: str = "digits") -> str:
    """The note as the dashboard reads it."""
    study = optuna.load_study(study_name=name, storage=store.optuna_storage())
    return optuna_dashboard.get_note(study)


@pytest.mark.parametrize("length", [0, 1, PIECE_LENGTH, PIECE_LENGTH + 1, 3 * PIECE_LENGTH])
def test_a_note_is_stored_as_the_dashboard_stores_it(store: Store, length: int) -> None:
    study_id = store.study_id("digits")
    body = ("é|`" * length)[:length]
    write_note(store, study_id, lambda before: "x" * (4 * PIECE_LENGTH))
    write_note(store, study_id, lambda before: body)
    assert shown(store) == note(store, study_id) == body
    ours = store.optuna_storage().get_study_system_attrs(study_id)
    theirs = optuna.create_study(storage=store.optuna_storage(), study_name="theirs")
    optuna_dashboard.save_note(theirs, "x")
    optuna_dashboard.save_note(theirs, body)
    wanted = store.optuna_storage().get_study_system_attrs(theirs._study_id)
    assert ours == {key: value for key, value in wanted.items() if value != ""}
    # And theirs is read and followed by ours.
    write_note(store, theirs._study_id, lambda before: before + "!")
    assert shown(store, "theirs") == body + "!"


def test_the_same_note_is_not_written_again(store: Store) -> None:
    study_id = store.study_id("digits")
    write_note(store, study_id, lambda before: "same")
    before = store.optuna_storage().get_study_system_attrs(study_id)
    write_note(store, study_id, lambda before: "same")
    assert store.optuna_storage().get_study_system_attrs(study_id) == before
    write_note(store, 12345, lambda before: "no such study")


def test_the_note_holds_what_the_issue_of_a_run_is(store: Store) -> None:
    save_note(store, load_study(store, "digits"))
    text, summary = shown(store), summarize(load_study(store, "digits"))
    best, strongest = summary.best, summary.choices[0].strongest
    assert best is not None and strongest is not None
    assert text.startswith(HEADING)
    assert "40 trials: 32 complete, 8 failed" in text
    assert f"trial {best.number}" in text and f"{best.score:.4g}" in text
    assert f"{strongest.lam:.3g}" in text and "lambda.1se" in text
    assert "1797 rows" in text and "sha256 `0000000000000000`" in text
    assert "**Folds:** 5, stratified" in text and "a, b, c, d, e" in text
    reasons = Counter(
        trial["attrs"]["failure"]["reason"].replace("_", r"\_")
        for trial in digits_trials()
        if trial["value"] is None
    )
    for reason, n in reasons.items():
        assert f"| {reason} | {n} |" in text
    assert f"`sweep replay digits {best.number}`" in text


def test_commands_and_machine_are_told_where_they_are_known(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    run = {"versions": {"torch": "2.13.0"}, "device": "cpu", "engine": "lanes"}
    run |= {"git": {"commit": "0123456789abcdef", "dirty": True}}
    more = {"command": "sweep run /w/digits.yaml --set seed=1", "runs": [run]}
    fill(url, "digits", [], attrs={**ATTRS, **more})
    with Store.open(url) as store:
        text = note_text(load_study(store, "digits"), {})
    assert "0 trials: none yet" in text
    assert "**Run it again:** `sweep run /w/digits.yaml --set seed=1`\n" in text
    assert "torch 2.13.0, cpu, lanes, commit 0123456789 with changes" in text
    assert "**Best" not in text and "Failures" not in text


def test_markdown_in_names_is_text(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    space = {"regularizer": optuna.distributions.CategoricalDistribution(["a|*b*", "<img>"])}
    trials = [complete({"regularizer": name}, [1.0, 2.0]) for name in ("a|*b*", "<img>")]
    trials.append(diverged({"regularizer": "<img>"}, "`x`"))
    fill(url, "digits", trials, attrs={}, space=space)
    with Store.open(url) as store:
        text = note_text(load_study(store, "digits"), {})
    assert r"a\|\*b\*" in text and r"\<img\>" in text and r"\`x\`" in text
    assert "a|*b*" not in text and "<img>" not in text


def test_what_people_wrote_above_the_heading_stays(store: Store) -> None:
    study_id = store.study_id("digits")
    write_note(store, study_id, lambda before: "Mine, *for good*.\n")
    for _ in range(2):
        save_note(store, load_study(store, "digits"))
    assert shown(store).startswith(f"Mine, *for good*.\n\n{HEADING}\n")
    assert shown(store).count(HEADING) == 1
    assert with_text("", "text") == "text"


def test_a_snapshot_is_the_study_as_it_is_by_then(store: Store) -> None:
    following = snapshots(store, "digits")
    assert len(next(following).trials) == 40
    study_id, worker = store.study_id("digits"), new_worker()
    new = [({"lambda": 0.1, "regularizer": "l1"}, SPACE)]
    store.create_trials(study_id, new, total=99, worker=worker)
    assert len(next(following).trials) == 40
    storage = store.optuna_storage()
    storage.set_trial_state_values(
        storage.get_trial_id_from_study_id_trial_number(study_id, 40),
        optuna.trial.TrialState.COMPLETE,
        [0.5],
    )
    assert next(following) == load_study(store, "digits")


class Told(Silent):
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.updates: list[Status] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def update(self, status: Status) -> None:
        self.updates.append(status)


def status_of(done: int, study: str = "digits") -> Status:
    return Status(study, 40, "minimize", "log_loss", complete=done)


def version(store: Store) -> Any:
    attrs = store.optuna_storage().get_study_system_attrs(store.study_id("digits"))
    return attrs.get("dashboard:note_ver", 0)


def test_the_note_is_kept_at_the_start_now_and_then_and_at_the_end(store: Store) -> None:
    told = Told()
    study_id, storage = store.study_id("digits"), store.optuna_storage()

    def one_more() -> None:
        storage.create_new_trial(study_id)

    with Notes(store.url, told, seconds=3600) as notes:
        assert version(store) == 0, "before the first update there may be no study"
        notes.notice("hello")
        notes.update(status_of(0))
        assert version(store) == 1 and "40 trials" in shown(store)
        one_more()
        for done in range(1, 5):
            notes.update(status_of(done))
        assert version(store) == 1, "not more often than asked for"
    assert version(store) == 2 and "41 trials" in shown(store)
    assert told.notices == ["hello"] and len(told.updates) == 5
    with Notes(store.url, told, seconds=0.0) as notes:
        for done in (1, 1, 2):
            one_more()
            notes.update(status_of(done))
        assert version(store) == 3, "only when something has finished since the run before"
        one_more()
        notes.update(status_of(3))
        assert version(store) == 3, "not at once again: writing takes a twentieth of the time"
    assert version(store) == 4


def test_a_note_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    fill(url)
    told = Told()
    with Notes(url, told, seconds=0.0) as notes:
        for done in range(3):
            notes.update(status_of(done, "gone"))
    assert len(told.notices) == 1 and "note" in told.notices[0] and len(told.updates) == 3
