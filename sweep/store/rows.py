"""Optuna's rows, written and read in bulk.

Every function here works on a connection, commits nothing, and leaves exactly the rows that
`optuna.storages.RDBStorage` leaves for the same trial (tests compare them).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import optuna.storages._rdb.models as models
import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

studies: sa.Table = models.StudyModel.__table__
directions: sa.Table = models.StudyDirectionModel.__table__
study_attrs: sa.Table = models.StudyUserAttributeModel.__table__
trials: sa.Table = models.TrialModel.__table__
params: sa.Table = models.TrialParamModel.__table__
values: sa.Table = models.TrialValueModel.__table__
intermediates: sa.Table = models.TrialIntermediateValueModel.__table__
user_attrs: sa.Table = models.TrialUserAttributeModel.__table__
system_attrs: sa.Table = models.TrialSystemAttributeModel.__table__

_intermediate = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
_objective = models.TrialValueModel.stored_repr_to_value

NewTrial = tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]
"""Parameters in external values, and the distribution of each."""

# Below SQLite's and Postgres's limits on the number of bound values.
_CHUNK = 1000


def chunks(ids: Iterable[int]) -> Iterator[list[int]]:
    """`ids` in ascending order (so that concurrent writers lock rows in one order), in pieces."""
    ordered = sorted(ids)
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]


def now() -> datetime:
    """Naive UTC, as Optuna's columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


def stored_time(time: datetime) -> datetime:
    """A naive local or an aware time as naive UTC."""
    return time.astimezone(UTC).replace(tzinfo=None)


def _local_time(time: datetime | None) -> datetime | None:
    return time and time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def to_json(value: Any) -> str:
    """JSON as Optuna writes attributes, except that numbers that are not finite become null.

    Bare NaN and Infinity are no JSON: Postgres and SQLite's json functions refuse them. The
    character NUL, which Postgres cannot hold in text, becomes U+FFFD.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False)
    return text.replace("\\u0000", "\\ufffd") if "\\u0000" in text else text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def upsert(connection: Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert `rows`; where the table's unique key is taken, overwrite."""
    if not rows:
        return
    (unique,) = (c for c in table.constraints if isinstance(c, sa.UniqueConstraint))
    key = [column.name for column in unique.columns]
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    statement = statement.on_conflict_do_update(
        index_elements=key,
        set_={name: statement.excluded[name] for name in rows[0] if name not in key},
    )
    connection.execute(statement, list(rows))


def insert_trials(
    connection: Connection, study_id: int, first: int, new: Sequence[NewTrial], started: datetime
) -> list[int]:
    """RUNNING trials numbered from `first`, with their parameters; returns their ids in order."""
    statement = sa.insert(trials).returning(trials.c.trial_id, sort_by_parameter_order=True)
    created = connection.execute(
        statement,
        [
            {
                "study_id": study_id,
                "number": first + i,
                "state": TrialState.RUNNING,
                "datetime_start": started,
            }
            for i in range(len(new))
        ],
    )
    ids = list(created.scalars())
    # Keyed by identity: Optuna's choices (1,) and (True,) compare equal and differ in JSON.
    as_json: dict[int, str] = {}
    rows = []
    for trial_id, (chosen, distributions) in zip(ids, new, strict=True):
        for name, value in chosen.items():
            distribution = distributions[name]
            if id(distribution) not in as_json:
                as_json[id(distribution)] = distribution_to_json(distribution)
            rows.append(
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": float(distribution.to_internal_repr(value)),
                    "distribution_json": as_json[id(distribution)],
                }
            )
    if rows:
        connection.execute(sa.insert(params), rows)
    return ids


def attr_rows(trial_id: int, attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of trial_user_attributes."""
    return [
        {"trial_id": trial_id, "key": key, "value_json": to_json(value)}
        for key, value in attrs.items()
    ]


def intermediate_rows(trial_id: int, reported: Mapping[int, float]) -> list[dict[str, Any]]:
    """Rows of trial_intermediate_values: NaN and the infinities are NULL plus a type."""
    rows = []
    for step, value in reported.items():
        encoded = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(float(value))
        rows.append(
            {
                "trial_id": trial_id,
                "step": int(step),
                "intermediate_value": encoded[0],
                "intermediate_value_type": encoded[1],
            }
        )
    return rows


def value_row(trial_id: int, value: float) -> dict[str, Any]:
    """The row of trial_values of a study with one objective."""
    stored, kind = models.TrialValueModel.value_to_stored_repr(float(value))
    return {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind}


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def load_params(
    connection: Connection, ids: Iterable[int]
) -> dict[int, dict[str, tuple[Any, BaseDistribution]]]:
    """trial id -> {parameter: (external value, distribution)}, in the order they were written."""
    found: dict[int, dict[str, tuple[Any, BaseDistribution]]] = defaultdict(dict)
    wanted = (params.c.trial_id, params.c.param_name, params.c.param_value)
    for some in chunks(ids):
        statement = (
            sa.select(*wanted, params.c.distribution_json)
            .where(params.c.trial_id.in_(some))
            .order_by(params.c.param_id)
        )
        for trial_id, name, value, text in connection.execute(statement):
            distribution = _distribution(text)
            found[trial_id][name] = (distribution.to_external_repr(value), distribution)
    return found


def load_trials(connection: Connection, ids: Iterable[int]) -> list[FrozenTrial]:
    """The trials with these ids as Optuna shows them, by number.

    Six queries a thousand trials, where Optuna's loader asks six a trial.
    """
    wanted = list(ids)
    chosen = load_params(connection, wanted)
    users = _load_attrs(connection, user_attrs, wanted)
    systems = _load_attrs(connection, system_attrs, wanted)
    reported: dict[int, dict[int, float]] = defaultdict(dict)
    objectives: dict[int, dict[int, float]] = defaultdict(dict)
    for some in chunks(wanted):
        c = intermediates.c
        for trial_id, step, value, kind in connection.execute(
            sa.select(c.trial_id, c.step, c.intermediate_value, c.intermediate_value_type)
            .where(c.trial_id.in_(some))
            .order_by(c.trial_intermediate_value_id)
        ):
            reported[trial_id][step] = _intermediate(value, kind) if value is None else value
        c = values.c
        for trial_id, objective, value, kind in connection.execute(
            sa.select(c.trial_id, c.objective, c.value, c.value_type).where(c.trial_id.in_(some))
        ):
            objectives[trial_id][objective] = _objective(value, kind)
    loaded = []
    for some in chunks(wanted):
        for row in connection.execute(sa.select(trials).where(trials.c.trial_id.in_(some))):
            objective = objectives.get(row.trial_id)
            mine = chosen.get(row.trial_id, {})
            loaded.append(
                FrozenTrial(
                    number=row.number,
                    state=row.state,
                    value=None,
                    values=[objective[i] for i in sorted(objective)] if objective else None,
                    datetime_start=_local_time(row.datetime_start),
                    datetime_complete=_local_time(row.datetime_complete),
                    params={name: value for name, (value, _) in mine.items()},
                    distributions={name: each for name, (_, each) in mine.items()},
                    user_attrs=users.get(row.trial_id, {}),
                    system_attrs=systems.get(row.trial_id, {}),
                    intermediate_values=reported.get(row.trial_id, {}),
                    trial_id=row.trial_id,
                )
            )
    return sorted(loaded, key=lambda trial: trial.number)


def _load_attrs(
    connection: Connection, table: sa.Table, ids: Sequence[int]
) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for some in chunks(ids):
        for trial_id, key, text in connection.execute(
            sa.select(table.c.trial_id, table.c.key, table.c.value_json)
            .where(table.c.trial_id.in_(some))
            .order_by(table.primary_key.columns[0])
        ):
            found[trial_id][key] = json.loads(text)
    return found
