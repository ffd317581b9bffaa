"""The lambda path lists every finished trial, and marks what `sweep best` chooses."""

from __future__ import annotations

from pathlib import Path

from sweep.insight.path import BEST, COLUMNS, MIN, ONE_SE, lambda_path, path_lines
from sweep.insight.selection import choices
from sweep.insight.stored import StoredStudy, load_study
from sweep.store.storage import Store
from tests.stored_studies import digits_trials, fill


def stored(tmp_path: Path) -> StoredStudy:
    url = f"sqlite:///{tmp_path / 'digits.db'}"
    fill(url)
    with Store.open(url) as store:
        return load_study(store, "digits")


def test_every_finished_trial_is_a_step_by_regularizer_and_lambda(tmp_path: Path) -> None:
    study = stored(tmp_path)
    steps = lambda_path(study)
    assert sorted(step.trial for step in steps) == list(range(40))
    ranked = [choice.regularizer for choice in choices(study)]
    keys = [(ranked.index(step.regularizer), step.lam or 0.0) for step in steps]
    assert keys == sorted(keys)
    for step in steps:
        given = digits_trials()[step.trial]
        is_none = given["params"]["regularizer"] == "none"
        assert step.lam == (None if is_none else given["params"]["lambda"])
        assert step.score == given["value"]
        assert (step.state == "FAIL") == (step.reason is not None) == (step.score is None)
        assert tuple(step.as_dict()) == COLUMNS


def test_the_marks_are_the_choices_of_the_summary(tmp_path: Path) -> None:
    study = stored(tmp_path)
    marked = {(step.regularizer, step.trial): step.mark for step in lambda_path(study) if step.mark}
    expected: dict[tuple[str, int], str] = {}
    for choice in choices(study):
        assert choice.best is not None
        name = BEST if choice.best.lam is None else MIN
        expected[choice.regularizer, choice.best.number] = name
        if choice.strongest is not None:
            key = choice.regularizer, choice.strongest.number
            expected[key] = f"{expected[key]}, {ONE_SE}" if key in expected else ONE_SE
    assert marked == expected and len(path_lines(study)) == 3
