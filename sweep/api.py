"""The Python interface: `sweep.run`, `sweep.open`, and what they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.store import queries
from sweep.store.connection import shown, storage_url

if TYPE_CHECKING:
    import pandas as pd

    from sweep.insight.effects import Effects
    from sweep.insight.selection import Candidate
    from sweep.insight.stored import StoredStudy
    from sweep.insight.summary import Summary
    from sweep.search.status import Observer


class Study:
    """A study in a database. Every question is answered from the database as it is now."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url

    @property
    def best(self) -> Candidate | None:
        """The best COMPLETE trial: number, score, score_se, params, fold_scores; None without one.

        Of equal scores the one with the larger lambda.
        """
        return self.summary().best

    def summary(self) -> Summary:
        """The best trial and lambda of each regularizer, and whether the folds tell them apart."""
        from sweep.insight.summary import summarize

        return summarize(self._stored())

    def path(self) -> pd.DataFrame:
        """One row a finished trial: regularizer, lambda, score, nonzero, state, mark.

        `mark` is lambda.min or lambda.1se; by regularizer, the best first, then by lambda.
        """
        from sweep.insight.path import COLUMNS, lambda_path

        return _records([step.as_dict() for step in lambda_path(self._stored())], COLUMNS)

    def stability_map(self) -> pd.DataFrame:
        """One row a bin of regularizer, clipping, lambda and learning rate that holds trials.

        How many, how many of them diverged, and the analytic bound where it is known.
        RequestError where learning rates do not differ.
        """
        from sweep.insight.stability import COLUMNS, stability_map

        return _records(stability_map(self._stored()).rows(), COLUMNS)

    def cures(self) -> Effects:
        """What keeps training stable, and at what cost in score, as `sweep cures` compares it."""
        from sweep.insight.effects import effects

        return effects(self._stored())

    def _stored(self) -> StoredStudy:
        from sweep.insight.stored import load_study
        from sweep.store.storage import Store

        with Store.open(self.url) as store:
            return load_study(store, self.name)

    def trials(
        self,
        *,
        where: str | None = None,
        sort: str | None = None,
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """One row a trial, as the view sweep_trials has it: state, score, parameters, failure.

        `where` is an SQL condition over the columns, `sort` a column (`-column`: greatest first).
        """
        found = queries.trials(
            self.url, self.name, where=where, sort=sort, columns=columns, limit=limit
        )
        return _frame(found)

    def folds(self, trial: int | None = None) -> pd.DataFrame:
        """One row a fold of every COMPLETE trial: study, trial, fold, score."""
        return _frame(queries.folds(self.url, self.name, trial))

    def failures(self) -> pd.DataFrame:
        """One row a FAIL trial, whatever failed: kind, reason, message, fold, step, parameters."""
        return _frame(queries.failures(self.url, self.name))

    def diverged(self) -> pd.DataFrame:
        """One row a trial whose training exploded: reason, fold, step, layer, loss, parameters."""
        return _frame(queries.diverged(self.url, self.name))

    def __repr__(self) -> str:
        return f"<sweep study {self.name!r} in {shown(self.url)}>"


class Result(Study):
    """What `run` returns: the study it ran, and how that ended.

    `study` is the study's name, `stopped_by` the number of the signal that ended it early.
    """

    def __init__(self, name: str, url: str, stopped_by: int | None) -> None:
        super().__init__(name, url)
        self.stopped_by = stopped_by

    @property
    def study(self) -> str:
        """The study's name: the file's, or with `fresh` a new one."""
        return self.name

    def __repr__(self) -> str:
        summary = self.summary()
        parts = [f"{summary.n_complete} of {summary.n_trials} trials complete"]
        if summary.failed:
            parts.append(f"{summary.failed.total()} failed")
        if summary.best is not None:
            from sweep.insight.words import params_text

            parts.append(f"best {summary.best_text()} with {params_text(summary.best.params)}")
        return f"<sweep result of {self.name!r}: {', '.join(parts)}>"


class Database:
    """The studies at one storage address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def studies(self) -> pd.DataFrame:
        """One row a study: direction, trials by state, best score, times."""
        return _frame(queries.studies(self.url))

    def study(self, name: str) -> Study:
        """The study of that name; RequestError names those there are."""
        queries.trials(self.url, name, limit=0)
        return Study(name, self.url)

    def sql(self, statement: str, **params: Any) -> pd.DataFrame:
        """The answer to one SELECT; `:name` in it is the keyword argument `name`."""
        return _frame(queries.run_sql(self.url, statement, params))

    def __repr__(self) -> str:
        return f"<sweep database {shown(self.url)}>"


def run(
    source: str | Path | Mapping[str, Any],
    *,
    trials: int | None = None,
    timeout: float | None = None,
    storage: str | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    engine: str = "auto",
    device: str = "auto",
    observer: Observer | None = None,
) -> Result:
    """Runs a study, or continues it up to `trials` in all, and returns what is known of it.

    `source` is a study file's path or the same as a mapping; `overrides` are `key.path=value`
    as of `--set`; `storage` defaults to SWEEP_STORAGE, else sqlite:///sweep.db; `timeout` is in
    seconds; `fresh` starts over under a new name; `engine` is auto, lanes or reference; `device`
    is auto (a GPU where there is one), cpu or cuda; `observer` is told how it goes
    (sweep.search.status.Observer).

    Raises RequestError and its kin (SpecError, DataError, StudyChangedError) before anything is
    trained or written. After Ctrl-C it returns early, with `stopped_by` set.
    """
    from sweep.errors import RequestError
    from sweep.insight.note import Notes
    from sweep.search.loop import run_study
    from sweep.search.status import Silent
    from sweep.spec import load_spec

    if trials is not None and trials < 1:
        raise RequestError(f"trials is {trials}; give 1 or more.")
    if engine not in ENGINES:
        raise RequestError(f"No engine {engine!r}. Engines: {', '.join(ENGINES)}.")
    url = storage_url(storage)
    with Notes(url, observer or Silent()) as notes:
        ended = run_study(
            load_spec(source, overrides),
            url,
            trials=trials,
            timeout=timeout,
            fresh=fresh,
            engine=engine,
            device=device,
            observer=notes,
        )
    return Result(ended.study, url, ended.stopped_by)


def open(storage: str | None = None) -> Database:
    """The study database at an address (default: SWEEP_STORAGE, else sqlite:///sweep.db).

    Raises RequestError if there is none.
    """
    url = storage_url(storage)
    queries.studies(url)
    return Database(url)


ENGINES = ("auto", "lanes", "reference")


def _frame(rows: queries.Rows) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame.from_records(rows.rows, columns=rows.columns)


def _records(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame.from_records([list(row.values()) for row in rows], columns=list(columns))
