"""A trial's way from RUNNING to its end, or back to WAITING: one function a step.

Every function works inside the caller's transaction. `again` says that an earlier try may have been
committed before the connection broke; the function then finds its own traces and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from sweep.errors import StorageError
from sweep.store import claims, rows
from sweep.store.claims import MAX_ATTEMPTS
from sweep.store.rows import NewTrial
from sweep.store.trial import Cursor, Finished, Trial


@dataclass(frozen=True)
class Claim:
    """Who claims, marked so that the same call recognises its claims after a lost connection."""

    worker: str
    token: str
    started: datetime

    @classmethod
    def now(cls, worker: str) -> Claim:
        """A claim of this moment."""
        return cls(worker, claims.new_token(), rows.now())


def lock_study(connection: Connection, study_id: int, name: str | None) -> None:
    """Until the transaction ends nobody else numbers trials of the study, or deletes it.

    Optuna locks this row too when it numbers a trial. Raises StorageError where the study is no
    longer there, or has another name than `name`: its id may be another study's by now.
    """
    c = rows.studies.c
    wanted = sa.select(c.study_name).where(c.study_id == study_id).with_for_update()
    found = connection.execute(wanted).scalar()
    if found is None or name not in (None, found):
        raise StorageError(
            f"Study {(name or study_id)!r} was deleted or renamed while it ran; "
            "what is unfinished is given up."
        )


def create(
    connection: Connection,
    study_id: int,
    new: Sequence[NewTrial],
    total: int,
    claim: Claim,
    user_attrs: Sequence[Mapping[str, Any]],
    expected_first: int | None,
    again: bool,
) -> list[Trial]:
    """Those of `new` that fit under `total`, RUNNING and claimed.

    None where the first would not be number `expected_first`.
    """
    if again and (mine := claims.claimed_by_call(connection, claim.token)):
        return _claimed_trials(connection, mine)
    count = sa.select(sa.func.count()).where(rows.trials.c.study_id == study_id)
    first = connection.execute(count).scalar_one()
    fitting = new[: max(0, total - first)]
    if not fitting or expected_first not in (None, first):
        return []
    ids = rows.insert_trials(connection, study_id, first, fitting, claim.started)
    claims.insert_claims(connection, study_id, ids, claim.worker, claim.token)
    attrs = [
        row
        for trial_id, own in zip(ids, user_attrs, strict=False)
        for row in rows.attr_rows(trial_id, own)
    ]
    rows.upsert(connection, rows.user_attrs, attrs)
    return [
        Trial(trial_id, first + i, dict(chosen))
        for i, (trial_id, (chosen, _)) in enumerate(zip(ids, fitting, strict=True))
    ]


def resume(
    connection: Connection, study_id: int, limit: int, claim: Claim, again: bool
) -> list[Trial]:
    """WAITING trials that were given back and RUNNING ones of lost workers, claimed anew."""
    if again and (mine := claims.claimed_by_call(connection, claim.token)):
        return _claimed_trials(connection, mine)
    _fail_lost(connection, study_id)
    taken = claims.take_over(connection, study_id, limit, claim.worker, claim.token)
    for some in rows.chunks(taken):
        connection.execute(
            sa.update(rows.trials)
            .where(rows.trials.c.trial_id.in_(some))
            .values(state=TrialState.RUNNING, datetime_start=claim.started)
        )
        reported = rows.intermediates
        connection.execute(sa.delete(reported).where(reported.c.trial_id.in_(some)))
    return _claimed_trials(connection, taken)


def report(connection: Connection, values: Mapping[int, Mapping[int, float]]) -> None:
    """Intermediate values of those trials that are RUNNING."""
    running: list[int] = []
    for some in rows.chunks(values):
        statement = (
            sa.select(rows.trials.c.trial_id)
            .where(rows.trials.c.trial_id.in_(some))
            .where(rows.trials.c.state == TrialState.RUNNING)
            .order_by(rows.trials.c.trial_id)
            .with_for_update()
        )
        running += connection.execute(statement).scalars()
    reported = [row for each in running for row in rows.intermediate_rows(each, values[each])]
    rows.upsert(connection, rows.intermediates, reported)


def finish(
    connection: Connection,
    results: Sequence[Finished],
    ends: Sequence[datetime],
    worker: str,
    again: bool,
) -> list[bool]:
    """Write the ends of the trials that `worker` still holds; which those were."""
    held = claims.held(connection, [r.trial.trial_id for r in results], worker)
    mine = [held.get(r.trial.trial_id) == r.trial.attempts for r in results]
    kept = [(r, end) for r, end, is_mine in zip(results, ends, mine, strict=True) if is_mine]
    if kept:
        _write_ends(connection, kept)
    lost = [r.trial.trial_id for r, is_mine in zip(results, mine, strict=True) if not is_mine]
    claims.forget_ended(connection, lost, worker)
    if not again:
        return mine
    done = _ended_at(connection, results)
    return [
        is_mine or done.get(r.trial.trial_id) == (r.state, end)
        for r, end, is_mine in zip(results, ends, mine, strict=True)
    ]


def give_back(connection: Connection, trials: Sequence[Trial], worker: str) -> None:
    """RUNNING -> WAITING, for the trials that `worker` still holds."""
    held = claims.held(connection, [trial.trial_id for trial in trials], worker)
    ids = [t.trial_id for t in trials if held.get(t.trial_id) == t.attempts]
    claims.release(connection, ids)
    for some in rows.chunks(ids):
        connection.execute(
            sa.update(rows.trials)
            .where(rows.trials.c.trial_id.in_(some))
            .values(state=TrialState.WAITING, datetime_start=None)
        )


def finished_since(
    connection: Connection, study_id: int, start: Cursor
) -> tuple[list[FrozenTrial], Cursor]:
    """Trials that have finished since `start`, and the cursor that follows."""
    c = rows.trials.c
    wanted = sa.select(c.trial_id, c.state)
    made = wanted.where(c.study_id == study_id, c.trial_id > start.last)
    seen: dict[int, TrialState] = dict(connection.execute(made).all())
    last = max(seen, default=start.last)
    for some in rows.chunks(start.unfinished):
        seen.update(connection.execute(wanted.where(c.trial_id.in_(some))).all())
    done = [trial_id for trial_id, state in seen.items() if state.is_finished()]
    following = Cursor(last, frozenset(seen).difference(done))
    return rows.load_trials(connection, done), following


def _claimed_trials(connection: Connection, taken: Mapping[int, int]) -> list[Trial]:
    """Trials with these {id: attempts}, by number."""
    chosen = rows.load_params(connection, taken)
    found = []
    for some in rows.chunks(taken):
        numbers = sa.select(rows.trials.c.trial_id, rows.trials.c.number)
        for trial_id, number in connection.execute(numbers.where(rows.trials.c.trial_id.in_(some))):
            external = {name: value for name, (value, _) in chosen.get(trial_id, {}).items()}
            found.append(Trial(trial_id, number, external, taken[trial_id]))
    return sorted(found, key=lambda trial: trial.number)


def _fail_lost(connection: Connection, study_id: int) -> None:
    lost = claims.drop_lost(connection, study_id)
    message = f"{MAX_ATTEMPTS} workers that trained this trial stopped without a word."
    failure = {"kind": "worker_lost", "reason": "worker_lost", "message": message}
    attrs = [row for trial_id in lost for row in rows.attr_rows(trial_id, {"failure": failure})]
    rows.upsert(connection, rows.user_attrs, attrs)
    for some in rows.chunks(lost):
        connection.execute(
            sa.update(rows.trials)
            .where(rows.trials.c.trial_id.in_(some))
            .values(state=TrialState.FAIL, datetime_complete=rows.now())
        )


def _write_ends(connection: Connection, kept: Sequence[tuple[Finished, datetime]]) -> None:
    table = rows.trials
    ends: list[dict[str, Any]] = [
        {
            "id": result.trial.trial_id,
            "to": result.state,
            "end": end,
            "start": rows.stored_time(result.started) if result.started else None,
        }
        for result, end in kept
    ]
    start = sa.bindparam("start", type_=sa.DateTime())
    connection.execute(
        sa.update(table)
        .where(table.c.trial_id == sa.bindparam("id"))
        .values(
            state=sa.bindparam("to"),
            datetime_complete=sa.bindparam("end"),
            datetime_start=sa.func.coalesce(start, table.c.datetime_start),
        ),
        sorted(ends, key=lambda each: int(each["id"])),
    )
    values, reported, attrs = [], [], []
    for result, _ in kept:
        trial_id, value = result.trial.trial_id, result.stored_value
        if value is not None:
            values.append(rows.value_row(trial_id, value))
        reported += rows.intermediate_rows(trial_id, result.intermediate)
        attrs += rows.attr_rows(trial_id, result.user_attrs)
    rows.upsert(connection, rows.values, values)
    rows.upsert(connection, rows.intermediates, reported)
    rows.upsert(connection, rows.user_attrs, attrs)
    claims.delete(connection, [result.trial.trial_id for result, _ in kept])


def _ended_at(
    connection: Connection, results: Sequence[Finished]
) -> dict[int, tuple[TrialState, datetime]]:
    c = rows.trials.c
    found: dict[int, tuple[TrialState, datetime]] = {}
    for some in rows.chunks(result.trial.trial_id for result in results):
        wanted = sa.select(c.trial_id, c.state, c.datetime_complete).where(c.trial_id.in_(some))
        for trial_id, state, end in connection.execute(wanted):
            found[trial_id] = (state, end)
    return found
