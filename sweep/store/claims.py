"""Who trains what: claims on trials, with a lease that a living worker keeps extending.

A claim is a row of `sweep_claims`, written in the transaction that makes its trial RUNNING and
deleted in the one that finishes it. A claim is held by (worker, attempts); every change of hands
raises `attempts`, so a worker that wakes past its lease no longer holds what was taken from it.
Given back is a claim without a worker, beside a WAITING trial.

RUNNING trials without a claim belong to somebody else (plain Optuna, a dashboard) and are never
touched; neither are the WAITING trials of `study.enqueue_trial`, which have no parameters yet.
Time is the database's: workers' clocks need not agree.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from sweep.store.rows import chunks, trials
from sweep.store.schema import claims

LEASE_SECONDS = 30.0
RESTART_GRACE_SECONDS = 10.0
"""After a restart of Postgres nobody is lost for so long: all were kept from extending leases."""
MAX_ATTEMPTS = 3
"""A trial that lost this many workers is failed: it may be what kills them."""


def new_token() -> str:
    """Marks the claims of one call, so that it can recognise them after a lost connection."""
    return uuid.uuid4().hex


def clock(connection: Connection) -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's clock."""
    if connection.dialect.name == "postgresql":
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float(53))
    return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float(53))


def insert_claims(
    connection: Connection, study_id: int, trial_ids: Iterable[int], worker: str, token: str
) -> None:
    """First claims, on trials made in this transaction."""
    lease_until = connection.execute(sa.select(clock(connection) + LEASE_SECONDS)).scalar_one()
    rows: list[dict[str, Any]] = [
        {
            "trial_id": trial_id,
            "study_id": study_id,
            "worker": worker,
            "lease_until": lease_until,
            "attempts": 1,
            "token": token,
        }
        for trial_id in trial_ids
    ]
    connection.execute(sa.insert(claims), rows)


def claimed_by_call(connection: Connection, token: str) -> dict[int, int]:
    """trial id -> attempts, of the claims that the call with this token has made."""
    found = connection.execute(
        sa.select(claims.c.trial_id, claims.c.attempts).where(claims.c.token == token)
    )
    return dict(found.all())


def take_over(
    connection: Connection, study_id: int, limit: int, worker: str, token: str
) -> dict[int, int]:
    """Claim up to `limit` trials that were given back or whose lease ran out, oldest first.

    Returns trial id -> attempts. `FOR UPDATE SKIP LOCKED` lets several workers take different
    trials at once on Postgres; SQLite has one writer at a time anyway.
    """
    free = connection.execute(
        _takeable(connection, study_id)
        .where(claims.c.attempts < MAX_ATTEMPTS)
        .order_by(trials.c.number)
        .limit(limit)
    )
    taken: dict[int, int] = {}
    for some in chunks(free.scalars().all()):
        updated = connection.execute(
            sa.update(claims)
            .where(claims.c.trial_id.in_(some))
            .values(
                worker=worker,
                lease_until=clock(connection) + LEASE_SECONDS,
                attempts=claims.c.attempts + 1,
                token=token,
            )
            .returning(claims.c.trial_id, claims.c.attempts)
        )
        taken.update(updated.all())
    return taken


def drop_lost(connection: Connection, study_id: int) -> list[int]:
    """Delete the claims of trials that have lost MAX_ATTEMPTS workers; returns the trials' ids."""
    lost = connection.execute(
        _takeable(connection, study_id).where(claims.c.attempts >= MAX_ATTEMPTS)
    )
    ids: list[int] = list(lost.scalars().all())
    delete(connection, ids)
    return ids


def _takeable(connection: Connection, study_id: int) -> sa.Select[Any]:
    given_back = sa.and_(claims.c.worker.is_(None), trials.c.state == TrialState.WAITING)
    expired = sa.and_(
        claims.c.worker.is_not(None),
        trials.c.state == TrialState.RUNNING,
        claims.c.lease_until < clock(connection),
        _up_for_a_while(connection),
    )
    return (
        sa.select(claims.c.trial_id)
        .join(trials, trials.c.trial_id == claims.c.trial_id)
        .where(claims.c.study_id == study_id, sa.or_(given_back, expired))
        .with_for_update(skip_locked=True)
    )


def _up_for_a_while(connection: Connection) -> sa.ColumnElement[bool]:
    if connection.dialect.name != "postgresql":
        return sa.true()
    started = sa.cast(sa.extract("epoch", sa.func.pg_postmaster_start_time()), sa.Float(53))
    return clock(connection) - started > RESTART_GRACE_SECONDS


def extend(connection: Connection, worker: str) -> set[int]:
    """Extend every lease of `worker`; returns the ids of the RUNNING trials it still holds."""
    # Locked in order of trial, like everywhere, so that two transactions cannot wait for each other
    mine = (
        sa.select(claims.c.trial_id)
        .join(trials, trials.c.trial_id == claims.c.trial_id)
        .where(claims.c.worker == worker, trials.c.state == TrialState.RUNNING)
        .order_by(claims.c.trial_id)
        .with_for_update(of=claims)
    )
    locked = connection.execute(mine).scalars().all()
    for some in chunks(locked):
        connection.execute(
            sa.update(claims)
            .where(claims.c.trial_id.in_(some), claims.c.worker == worker)
            .values(lease_until=clock(connection) + LEASE_SECONDS)
        )
    return set(locked)


def held(connection: Connection, trial_ids: Collection[int], worker: str) -> dict[int, int]:
    """trial id -> attempts, of those trials that are RUNNING under a claim of `worker`.

    Both rows stay locked until the transaction ends: nobody can take the trial over meanwhile.
    """
    found: dict[int, int] = {}
    for some in chunks(trial_ids):
        statement = (
            sa.select(claims.c.trial_id, claims.c.attempts)
            .join(trials, trials.c.trial_id == claims.c.trial_id)
            .where(
                claims.c.trial_id.in_(some),
                claims.c.worker == worker,
                trials.c.state == TrialState.RUNNING,
            )
            .order_by(claims.c.trial_id)
            .with_for_update()
        )
        found.update(connection.execute(statement).all())
    return found


def in_training(connection: Connection, study_id: int) -> list[str]:
    """The workers whose leases on RUNNING trials of the study have not run out, one a trial."""
    wanted = (
        sa.select(claims.c.worker)
        .join(trials, trials.c.trial_id == claims.c.trial_id)
        .where(
            claims.c.study_id == study_id,
            claims.c.worker.is_not(None),
            claims.c.lease_until >= clock(connection),
            trials.c.state == TrialState.RUNNING,
        )
        .order_by(claims.c.trial_id)
    )
    return [str(worker) for worker in connection.execute(wanted).scalars()]


def release(connection: Connection, trial_ids: Iterable[int]) -> None:
    """Give claims back: no worker, and the attempt does not count."""
    for some in chunks(trial_ids):
        connection.execute(
            sa.update(claims)
            .where(claims.c.trial_id.in_(some))
            .values(worker=None, attempts=claims.c.attempts - 1)
        )


def forget_ended(connection: Connection, trial_ids: Iterable[int], worker: str) -> None:
    """Remove the worker's claims on those trials that somebody else has ended."""
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    ended = sa.select(trials.c.trial_id).where(trials.c.state.not_in(unfinished))
    for some in chunks(trial_ids):
        connection.execute(
            sa.delete(claims).where(
                claims.c.trial_id.in_(some),
                claims.c.worker == worker,
                claims.c.trial_id.in_(ended.where(trials.c.trial_id.in_(some))),
            )
        )


def delete(connection: Connection, trial_ids: Iterable[int]) -> None:
    """Remove the claims of finished trials."""
    for some in chunks(trial_ids):
        connection.execute(sa.delete(claims).where(claims.c.trial_id.in_(some)))
