"""The study database: Optuna's own schema, written in bulk, its trials shared among workers.

    store = Store.open(storage_url(None), create=True)
    study = store.create_study("ridge", "minimize", {"knobs": {"fixed": {}, "varied": ["lambda"]}})
    trials = store.create_trials(study, new, total=100, worker=worker)   # RUNNING, claimed
    store.finish_trials([Finished(trial, TrialState.COMPLETE, 0.5) for trial in trials], worker)

Each call is one transaction. A worker is a string that no other process uses (`new_worker()`); it
must call `heartbeat` more often than every `LEASE_SECONDS`, or its trials are taken over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from sweep.errors import RequestError
from sweep.store import claims, lifecycle, rows
from sweep.store.claims import LEASE_SECONDS, MAX_ATTEMPTS
from sweep.store.connection import (
    BUSY_SECONDS,
    DEFAULT_URL,
    connect,
    read,
    set_pragmas,
    shown,
    storage_url,
    unknown_study,
    write,
)
from sweep.store.lifecycle import Claim
from sweep.store.rows import NewTrial
from sweep.store.schema import ensure_schema, lock_schema
from sweep.store.trial import Cursor, Finished, Trial, new_worker
from sweep.store.views import refresh_views

__all__ = [
    "DEFAULT_URL",
    "LEASE_SECONDS",
    "MAX_ATTEMPTS",
    "Cursor",
    "Finished",
    "NewTrial",
    "Store",
    "Trial",
    "new_worker",
    "shown",
    "storage_url",
]

MAX_NAME = 512


class Store:
    """A study database. Safe to use from several threads; open one in each process."""

    def __init__(self, url: str, engine: Engine) -> None:
        self.url = url
        self.engine = engine
        # (study, parameter) pairs whose column in the views is known to exist.
        self._columns: set[tuple[int, str]] = set()
        # By which names the studies were asked for: SQLite gives the id of a deleted study anew.
        self._names: dict[int, str] = {}
        self._optuna: optuna.storages.RDBStorage | None = None

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Store:
        """The database at `url` (any form that `storage_url` takes).

        Raises RequestError when there is none and `create` is False, or when the file is no
        database; StorageError when it cannot be reached, read, or is of another version.
        """
        address = storage_url(url)
        engine = connect(address)
        try:
            ensure_schema(engine, create=create)
        except BaseException:
            engine.dispose()
            raise
        return cls(address, engine)

    def close(self) -> None:
        """Close the pooled connections; the store opens new ones if it is used again."""
        self.engine.dispose()
        if self._optuna is not None:
            self._optuna.remove_session()
            self._optuna.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({shown(self.url)!r})"

    def optuna_storage(self) -> optuna.storages.BaseStorage:
        """Optuna's own storage on this database, for `optuna.load_study`, its dashboard, its CLI.

        It caches finished trials, so a dashboard's refresh reads the new ones only.
        """
        if self._optuna is None:
            self._optuna = self._open_optuna()
        cached: optuna.storages.BaseStorage = optuna.storages.get_storage(self._optuna)
        return cached

    def _open_optuna(self) -> optuna.storages.RDBStorage:
        sqlite = self.engine.dialect.name == "sqlite"
        settings: dict[str, Any] = {"pool_pre_ping": True}
        if sqlite:
            settings = {"connect_args": {"timeout": BUSY_SECONDS}}
        # Optuna passes the address through str.format.
        address = self.url.replace("{", "{{").replace("}", "}}")
        storage = optuna.storages.RDBStorage(address, settings, skip_table_creation=True)
        if sqlite:
            event.listen(storage.engine, "connect", set_pragmas)
            storage.engine.dispose()  # connections opened before the listener was there
        return storage

    # Studies

    def studies(self) -> list[str]:
        """Names of all studies, oldest first."""
        names = sa.select(rows.studies.c.study_name).order_by(rows.studies.c.study_id)
        return read(self.engine, lambda c: list(c.execute(names).scalars()))

    def create_study(self, name: str, direction: str, attrs: Mapping[str, Any]) -> int:
        """The id of the study `name`, made with user attributes `attrs` if there is none yet.

        `direction` is minimize or maximize. An existing study is returned as it is: compare
        `study_attrs` to see whether it is yours. The attribute `knobs`,
        {"fixed": {name: value}, "varied": [name]}, gives the views their columns.
        """
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"A study's direction is minimize or maximize, not {direction!r}.")
        check_name(name)

        def work(connection: Connection, again: bool) -> int:
            lock_schema(connection)
            found = _find_study(connection, name)
            if found is not None:
                return found
            insert = sa.insert(rows.studies).values(study_name=name)
            made = connection.execute(insert.returning(rows.studies.c.study_id)).scalar_one()
            connection.execute(
                sa.insert(rows.directions).values(
                    study_id=made, objective=0, direction=StudyDirection[direction.upper()]
                )
            )
            _set_attrs(connection, made, attrs)
            refresh_views(connection)
            return int(made)

        made = write(self.engine, work)
        self._names[made] = name
        return made

    def study_id(self, name: str) -> int:
        """The id of study `name`; RequestError names the studies there are."""
        found = read(self.engine, lambda connection: _find_study(connection, name))
        if found is None:
            raise RequestError(unknown_study(name, self.studies(), self.url))
        self._names[found] = name
        return found

    def study_attrs(self, study_id: int) -> dict[str, Any]:
        """The study's user attributes."""
        attrs = rows.study_attrs.c
        wanted = sa.select(attrs.key, attrs.value_json).where(attrs.study_id == study_id)
        found = read(self.engine, lambda connection: connection.execute(wanted).all())
        return {key: json.loads(text) for key, text in found}

    def set_study_attrs(self, study_id: int, attrs: Mapping[str, Any]) -> None:
        """Write or overwrite these user attributes of the study."""

        def work(connection: Connection, again: bool) -> None:
            _set_attrs(connection, study_id, attrs)
            if "knobs" in attrs:
                lock_schema(connection)
                refresh_views(connection)

        write(self.engine, work)

    def append_study_attr(self, study_id: int, key: str, entry: Any, *, most: int) -> None:
        """Add `entry` to the study's user attribute `key`, a list of which the last `most` stay.

        Several processes may do so at once, and none of their entries is lost.
        """

        def work(connection: Connection, again: bool) -> None:
            lifecycle.lock_study(connection, study_id, self._names.get(study_id))
            c = rows.study_attrs.c
            wanted = sa.select(c.value_json).where(c.study_id == study_id, c.key == key)
            text = connection.execute(wanted).scalar()
            found = json.loads(text) if text else []
            if not (again and entry in found):
                _set_attrs(connection, study_id, {key: [*found, entry][-most:]})

        write(self.engine, work)

    def counts(self, study_id: int) -> dict[str, int]:
        """Number of trials by state: RUNNING, COMPLETE, PRUNED, FAIL, WAITING, zeros included."""
        state = rows.trials.c.state
        wanted = (
            sa.select(state, sa.func.count())
            .where(rows.trials.c.study_id == study_id)
            .group_by(state)
        )
        found: dict[TrialState, int] = read(self.engine, lambda c: dict(c.execute(wanted).all()))
        return {each.name: found.get(each, 0) for each in TrialState}

    # Trials

    def create_trials(
        self,
        study_id: int,
        new: Sequence[NewTrial],
        *,
        total: int,
        worker: str,
        expected_first: int | None = None,
        user_attrs: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Trial]:
        """RUNNING trials with these (parameters, distributions), claimed by `worker`.

        Numbers follow those in the database. The study never gets more than `total` trials in any
        state, whoever makes them: fewer than asked for, the first ones, may be returned.
        None are made where the first would not get the number `expected_first`: the parameters
        were chosen for other numbers. `user_attrs` has one mapping a trial.
        """
        claim = Claim.now(worker)
        columns = {(study_id, name) for chosen, _ in new for name in chosen}

        def work(connection: Connection, again: bool) -> list[Trial]:
            lifecycle.lock_study(connection, study_id, self._names.get(study_id))
            made = lifecycle.create(
                connection, study_id, new, total, claim, user_attrs or (), expected_first, again
            )
            if made and columns - self._columns:
                lock_schema(connection)
                refresh_views(connection)
            return made

        made = write(self.engine, work) if new else []
        if made:
            self._columns |= columns
        return made

    def resume_trials(self, study_id: int, *, limit: int, worker: str) -> list[Trial]:
        """Claim up to `limit` trials that were given back or whose worker was lost, oldest first.

        They keep number and parameters, and lose what an earlier attempt reported. A trial that
        has lost MAX_ATTEMPTS workers becomes FAIL with failure kind `worker_lost` instead. RUNNING
        trials without a claim (plain Optuna's) and WAITING ones of `study.enqueue_trial`, which
        have no parameters yet, are left alone.
        """
        claim = Claim.now(worker)

        def work(connection: Connection, again: bool) -> list[Trial]:
            lifecycle.lock_study(connection, study_id, self._names.get(study_id))
            return lifecycle.resume(connection, study_id, limit, claim, again)

        return write(self.engine, work)

    def heartbeat(self, worker: str) -> set[int]:
        """Extend the leases of `worker`; returns the ids of the trials it still holds."""
        return write(self.engine, lambda connection, again: claims.extend(connection, worker))

    def report(self, values: Mapping[int, Mapping[int, float]]) -> None:
        """Store intermediate values {trial id: {step: value}} of trials that are RUNNING."""

        if values:
            write(self.engine, lambda connection, again: lifecycle.report(connection, values))

    def finish_trials(self, results: Sequence[Finished], worker: str) -> list[bool]:
        """Store the ends of trials that `worker` holds; False where the claim was lost meanwhile.

        A trial taken over by somebody else, or ended from outside, is left as it is.
        """
        ends = [rows.stored_time(r.finished) if r.finished else rows.now() for r in results]
        return write(
            self.engine,
            lambda connection, again: lifecycle.finish(connection, results, ends, worker, again),
        )

    def give_back(self, trials: Sequence[Trial], worker: str) -> None:
        """RUNNING -> WAITING, same number and parameters; the next `resume_trials` takes them.

        Trials that `worker` no longer holds are left as they are.
        """

        write(
            self.engine, lambda connection, again: lifecycle.give_back(connection, trials, worker)
        )

    def finished_since(
        self, study_id: int, cursor: Cursor | None = None
    ) -> tuple[list[FrozenTrial], Cursor]:
        """Trials finished by anybody since `cursor` (None: all of them) by number, and the next.

        Reads the trials made since then and those that were unfinished, nothing else.
        """
        start = cursor or Cursor()
        return read(
            self.engine, lambda connection: lifecycle.finished_since(connection, study_id, start)
        )


def check_name(name: str) -> None:
    """Raises RequestError for what cannot be a study's name."""
    if not 0 < len(name) <= MAX_NAME or "\0" in name:
        raise RequestError(
            f"A study's name has 1 to {MAX_NAME} characters and no NUL; this one has "
            f"{len(name)}: {name[:40]!r}…"
        )


def _find_study(connection: Connection, name: str) -> int | None:
    if "\0" in name:  # which Postgres refuses even to compare
        return None
    found = sa.select(rows.studies.c.study_id).where(rows.studies.c.study_name == name)
    return connection.execute(found).scalar()


def _set_attrs(connection: Connection, study_id: int, attrs: Mapping[str, Any]) -> None:
    new = [
        {"study_id": study_id, "key": key, "value_json": rows.to_json(value)}
        for key, value in attrs.items()
    ]
    rows.upsert(connection, rows.study_attrs, new)
