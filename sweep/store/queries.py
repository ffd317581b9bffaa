"""What is known of studies: one function a question, each answered by the SQL views.

Every function takes the storage address first and returns `Rows`. Nothing here imports Optuna,
torch or pandas, so that a question is answered in a fraction of a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sweep.errors import RequestError
from sweep.store.connection import connect, storage_url, unknown_study
from sweep.store.lexer import names, one_expression
from sweep.store.readonly import TIMEOUT, Ask, Rows, nearest, reader
from sweep.store.schema import ensure_views
from sweep.store.views import HEAD, TAIL, column_names, quoted

__all__ = [
    "Rows",
    "best",
    "diverged",
    "failure",
    "failures",
    "failures_by_reason",
    "folds",
    "run_sql",
    "studies",
    "trials",
]

_REASONS = """
SELECT kind, reason, count(*) AS trials, min(trial) AS first_trial
  FROM sweep_failures WHERE study = :study
 GROUP BY kind, reason ORDER BY trials DESC, kind, reason"""
_FAILURE = """
SELECT a.value_json FROM trial_user_attributes a
  JOIN trials t ON t.trial_id = a.trial_id JOIN studies s ON s.study_id = t.study_id
 WHERE s.study_name = :study AND t.number = :trial AND a.key = 'failure'"""
_KNOBS = """
SELECT a.value_json FROM study_user_attributes a JOIN studies s ON s.study_id = a.study_id
 WHERE a.key = 'knobs'"""
_TRIED = """
SELECT DISTINCT p.param_name FROM trial_params p
  JOIN trials t ON t.trial_id = p.trial_id JOIN studies s ON s.study_id = t.study_id
 WHERE 1 = 1"""
_OF_STUDY = " AND s.study_name = :study"


def studies(url: str) -> Rows:
    """Every study: direction, trials by state, best score, when it started and last finished."""
    with _open(url) as ask:
        return ask("SELECT * FROM sweep_studies ORDER BY started, study")


def trials(
    url: str,
    study: str,
    *,
    where: str | None = None,
    sort: str | None = None,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
) -> Rows:
    """The study's trials by number: sweep_trials with the columns of this study's knobs.

    `where` is an SQL expression over the columns, such as "state = 'FAIL' and learning_rate > 1";
    `sort` a column, from its least value, or from its greatest with `-` before it (NULLs last);
    `columns` those to show, in order.
    """
    with _open(url) as ask:
        _check_study(ask, url, study)
        known = ask("SELECT * FROM sweep_trials WHERE 1 = 0").columns
        wanted = (
            list(dict.fromkeys(columns)) if columns is not None else _own_columns(ask, study, known)
        )
        descending = sort is not None and sort.startswith("-")
        by = "trial" if sort is None else sort.removeprefix("-")
        # SQLite takes an unknown "name" for a string, without a word.
        for name in [*wanted, by, *names(where or "")]:
            _check_column(name, known)
        direction = "DESC" if descending else "ASC"
        shown_columns = ", ".join(map(quoted, wanted)) or "*"
        condition = f" WHERE (\n{one_expression(where)}\n)" if where is not None else ""
        sql = (
            f"SELECT {shown_columns} FROM "
            f"(SELECT * FROM sweep_trials WHERE study = :study) AS t{condition} "
            f"ORDER BY {quoted(by)} {direction} NULLS LAST, trial"
        )
        params: dict[str, Any] = {"study": study}
        if limit is not None:
            if limit < 0:
                raise RequestError(f"The limit is {limit}; give 0 or more.")
            sql += " LIMIT :limit"
            params["limit"] = limit
        return ask(sql, params)


def best(url: str, study: str, n: int = 1) -> Rows:
    """The `n` best COMPLETE trials, best first in the study's direction."""
    with _open(url) as ask:
        _check_study(ask, url, study)
        ((direction,),) = ask(
            "SELECT direction FROM sweep_studies WHERE study = :study", {"study": study}
        ).rows
    sort = "-score" if direction == "maximize" else "score"
    return trials(url, study, where="state = 'COMPLETE'", sort=sort, limit=n)


def folds(url: str, study: str, trial: int | None = None) -> Rows:
    """One row a fold: study, trial, fold, score."""
    return _of_study(url, "sweep_folds", study, trial, "", "trial, fold")


def failures(url: str, study: str, trial: int | None = None) -> Rows:
    """The trials that failed, of whatever kind, with their diagnosis and parameters."""
    return _of_study(url, "sweep_failures", study, trial, "", "trial")


def diverged(url: str, study: str, trial: int | None = None) -> Rows:
    """The trials that diverged, with their diagnosis and parameters."""
    return _of_study(url, "sweep_failures", study, trial, " AND kind = 'divergence'", "trial")


def failure(url: str, study: str, trial: int) -> dict[str, Any] | None:
    """Everything stored about why a trial failed, its last steps included; None if it did not."""
    with _open(url) as ask:
        _check_study(ask, url, study)
        _check_trial(ask, study, trial)
        found = ask(_FAILURE, {"study": study, "trial": trial}).rows
    value = json.loads(found[0][0]) if found else None
    return value if isinstance(value, dict) else None


def failures_by_reason(url: str, study: str) -> Rows:
    """How many trials failed of what, most frequent first: kind, reason, trials, first_trial."""
    with _open(url) as ask:
        _check_study(ask, url, study)
        return ask(_REASONS, {"study": study})


def run_sql(
    url: str, sql: str, params: dict[str, Any] | None = None, timeout: float = TIMEOUT
) -> Rows:
    """One SELECT, WITH, VALUES or EXPLAIN on a connection that cannot write; `:name` parameters."""
    with _open(url, timeout) as ask:
        return ask(sql, params)


@contextmanager
def _open(url: str, timeout: float = TIMEOUT) -> Iterator[Ask]:
    """A reader of the database, whose views show all its studies."""
    address = storage_url(url)
    engine = connect(address)
    try:
        ensure_views(engine)
    finally:
        engine.dispose()
    with reader(address, timeout) as ask:
        yield ask


def _of_study(
    url: str, view: str, study: str, trial: int | None, condition: str, order: str
) -> Rows:
    with _open(url) as ask:
        _check_study(ask, url, study)
        params: dict[str, Any] = {"study": study}
        if trial is not None:
            _check_trial(ask, study, trial)
            params["trial"] = trial
            condition += " AND trial = :trial"
        sql = f"SELECT * FROM {view} WHERE study = :study{condition} ORDER BY {order}"
        return ask(sql, params)


def _check_study(ask: Ask, url: str, study: str) -> None:
    if "\0" not in study:
        name = {"study": study}
        if ask("SELECT 1 FROM studies WHERE study_name = :study", name).rows:
            return
    known = [name for (name,) in ask("SELECT study_name FROM studies ORDER BY study_id").rows]
    raise RequestError(unknown_study(study, known, storage_url(url)))


def _check_trial(ask: Ask, study: str, trial: int) -> None:
    counted = ask(
        "SELECT count(*), min(number), max(number) FROM trials t "
        "JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = :study",
        {"study": study},
    ).rows
    count, first, last = counted[0]
    if count and first <= trial <= last:
        return
    there = f"Its trials are {first} to {last}." if count else "It has none yet."
    raise RequestError(f"Study {study!r} has no trial {trial}. {there}")


def _check_column(name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise RequestError(f"No column {name!r}. {nearest(name, known)}")


def _own_columns(ask: Ask, study: str, known: Sequence[str]) -> list[str]:
    """The columns of sweep_trials that this study fills: varied knobs first, then fixed ones."""
    own = _knobs(ask, _OF_STUDY, {"study": study})
    if not set(own) <= set(known) or set(own) & {*HEAD, *TAIL}:
        # Some knob's column has another name than it, which depends on all the knobs there are.
        columns = column_names(_knobs(ask, "", {}))
        own = [columns[knob] for knob in own if knob in columns]
    return [*HEAD, *own, *TAIL]


def _knobs(ask: Ask, condition: str, params: dict[str, Any]) -> list[str]:
    """The names of the knobs of some studies, varied ones first, then fixed ones."""
    found: list[str] = []
    for (text,) in ask(_KNOBS + condition, params).rows:
        attr = json.loads(text)
        if isinstance(attr, dict):
            found += [*(attr.get("varied") or []), *(attr.get("fixed") or {})]
    found += sorted(name for (name,) in ask(_TRIED + condition, params).rows)
    return list(dict.fromkeys(found))
