"""Studies as a whole: deleted, renamed, merged. Each is one transaction."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import optuna.storages._rdb.models as models
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sweep.errors import RequestError
from sweep.store import claims, rows
from sweep.store.connection import read, unknown_study, write
from sweep.store.copying import OF_STUDY, OF_TRIAL, Copied, check_free, copy_trials, count
from sweep.store.copying import names as study_names
from sweep.store.provenance import CHOOSING, FREE, differences, spec_differences
from sweep.store.schema import claims as claims_table
from sweep.store.schema import lock_schema
from sweep.store.storage import Store, check_name
from sweep.store.views import refresh_views

_heartbeats: sa.Table = models.TrialHeartbeatModel.__table__


def check_deletable(store: Store, name: str, *, force: bool = False) -> int:
    """The number of trials that `delete_study` would delete; raises what it would raise."""

    def look(connection: Connection) -> int:
        study_id = _find(connection, store, name)
        if not force:
            _check_idle(connection, study_id, name, " --force deletes it all the same.")
        return count(connection, name)

    return read(store.engine, look)


def delete_study(store: Store, name: str, *, force: bool = False) -> int:
    """Deletes the study with everything stored of it; returns how many trials that were.

    Raises RequestError for an unknown study, and, unless `force`, while its trials are in training.
    """

    def work(connection: Connection, again: bool) -> int:
        lock_schema(connection)
        study_id = _find(connection, store, name)
        if not force:
            _check_idle(connection, study_id, name, " --force deletes it all the same.")
        n = count(connection, name)
        mine = sa.select(rows.trials.c.trial_id).where(rows.trials.c.study_id == study_id)
        for table in (*OF_TRIAL, _heartbeats, claims_table):
            connection.execute(sa.delete(table).where(table.c.trial_id.in_(mine)))
        for table in (rows.trials, *OF_STUDY, rows.studies):
            connection.execute(sa.delete(table).where(table.c.study_id == study_id))
        refresh_views(connection)
        return n

    return write(store.engine, work)


def rename_study(store: Store, old: str, new: str) -> None:
    """Gives the study another name; everything else stays, and so does its file's text.

    Raises RequestError for an unknown study, a name that is taken, and while trials are in
    training.
    """
    check_name(new)

    def work(connection: Connection, again: bool) -> None:
        lock_schema(connection)
        taken = study_names(connection)
        if again and new in taken and old not in taken:
            return
        study_id = _find(connection, store, old)
        check_free([new], taken, store.url, "Choose another name.")
        _check_idle(connection, study_id, old)
        connection.execute(
            sa.update(rows.studies)
            .where(rows.studies.c.study_id == study_id)
            .values(study_name=new)
        )

    write(store.engine, work)


def merge_studies(store: Store, names: Sequence[str], into: str) -> list[Copied]:
    """A new study `into` with the trials of all of `names`, numbered on in that order.

    The studies must ask the same (all of the study file but its name, trials, concurrency,
    sampler and enqueue) of the same data in the same folds, and none may be in training;
    RequestError, with the difference, otherwise. They stay as they are. The new study continues
    with the file of the first.
    """
    check_name(into)
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise RequestError("Give two or more different studies to merge.")

    def work(connection: Connection, again: bool) -> list[Copied]:
        lock_schema(connection)
        taken = study_names(connection)
        ids = {name: _find(connection, store, name) for name in names}
        if again and into in taken:
            return [Copied(name, into, count(connection, name)) for name in names]
        check_free([into], taken, store.url, "Give another name: --into NAME")
        attrs = {name: _attrs(connection, study_id) for name, study_id in ids.items()}
        for name, study_id in ids.items():
            _check_idle(connection, study_id, name)
            _check_same(names[0], attrs[names[0]], name, attrs[name])
        made = _make(connection, ids[names[0]], into)
        copied, first, parts = [], 0, []
        for name, study_id in ids.items():
            n = len(copy_trials(connection, connection, study_id, made, first))
            kept = {key: attrs[name].get(key) for key in ("versions", "environment", "runs")}
            parts.append({"study": name, "first": first, "trials": n, **kept})
            copied.append(Copied(name, into, n))
            first += n
        merged = dict(attrs[names[0]])
        merged["spec"] = {**merged["spec"], "trials": first}
        merged["merged"] = parts
        rows.upsert(
            connection,
            rows.study_attrs,
            [
                {"study_id": made, "key": key, "value_json": rows.to_json(value)}
                for key, value in merged.items()
            ],
        )
        refresh_views(connection)
        return copied

    return write(store.engine, work)


def _make(connection: Connection, like: int, name: str) -> int:
    """A study of this name with the direction of the study `like`."""
    c = rows.directions.c
    insert = sa.insert(rows.studies).values(study_name=name).returning(rows.studies.c.study_id)
    made = int(connection.execute(insert).scalar_one())
    directions = sa.select(c.direction, c.objective).where(c.study_id == like)
    for row in connection.execute(directions).mappings().all():
        connection.execute(sa.insert(rows.directions).values(study_id=made, **row))
    return made


def _check_same(first: str, attrs: dict[str, Any], other: str, others: dict[str, Any]) -> None:
    for name, own in ((first, attrs), (other, others)):
        if "spec" not in own:
            raise RequestError(
                f"Study {name!r} was not made by sweep: nothing says what its scores mean, so it "
                "cannot be merged."
            )
    changes = spec_differences(attrs["spec"], others["spec"], (*FREE, *CHOOSING))
    changes += differences(attrs.get("data"), others.get("data"), "data")
    if changes:
        raise RequestError(
            f"Studies {first!r} and {other!r} cannot be merged, their scores do not compare: "
            f"{'; '.join(changes[:4])}."
        )


def _check_idle(connection: Connection, study_id: int, name: str, hint: str = "") -> None:
    workers = claims.in_training(connection, study_id)
    if workers:
        n, processes = len(workers), sorted(set(workers))
        others = f" and {len(processes) - 1} more" if len(processes) > 1 else ""
        raise RequestError(
            f"Study {name[:60]!r} is being run: {n} {'trial is' if n == 1 else 'trials are'} in "
            f"training by {_process(processes[0])}{others}. Stop it first, or wait up to "
            f"{claims.LEASE_SECONDS:g} s if it was killed.{hint}"
        )


def _process(worker: str) -> str:
    """`process 42 on vm`, of a worker's name (`new_worker`)."""
    match = re.fullmatch(r"(.+)-(\d+)-[0-9a-f]{12}", worker)
    return f"process {match[2]} on {match[1]}" if match else worker


def _find(connection: Connection, store: Store, name: str) -> int:
    c = rows.studies.c
    found = None
    if "\0" not in name:
        wanted = sa.select(c.study_id).where(c.study_name == name).with_for_update()
        found = connection.execute(wanted).scalar()
    if found is None:
        raise RequestError(unknown_study(name, study_names(connection), store.url))
    return int(found)


def _attrs(connection: Connection, study_id: int) -> dict[str, Any]:
    c = rows.study_attrs.c
    wanted = sa.select(c.key, c.value_json).where(c.study_id == study_id)
    return {key: json.loads(text) for key, text in connection.execute(wanted)}
