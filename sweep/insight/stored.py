"""A stored study as selection looks at it. Nothing here imports torch, scikit-learn or pandas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from sweep.errors import RequestError
from sweep.store import rows
from sweep.store.connection import read
from sweep.store.storage import Store


@dataclass(frozen=True)
class StoredStudy:
    """A study's description and its finished trials, by number."""

    name: str
    direction: str
    score: str
    attrs: dict[str, Any]
    trials: tuple[FrozenTrial, ...]

    @property
    def fixed(self) -> dict[str, Any]:
        """The knobs that do not vary."""
        return dict(self.attrs.get("knobs", {}).get("fixed", {}))

    @property
    def varied(self) -> list[str]:
        """The names of the knobs that vary."""
        known = self.attrs.get("knobs", {}).get("varied")
        if known is not None:
            return list(known)
        return sorted({name for trial in self.trials for name in trial.params})


def load_study(store: Store, name: str) -> StoredStudy:
    """The study `name` with its finished trials; RequestError where there is none."""
    return next(snapshots(store, name))


def snapshots(store: Store, name: str) -> Iterator[StoredStudy]:
    """The study `name` as it is each time the next one is asked for; reads only what is new."""
    study_id = store.study_id(name)
    wanted = sa.select(rows.directions.c.direction).where(rows.directions.c.study_id == study_id)
    found = read(store.engine, lambda connection: connection.execute(wanted).scalars().all())
    if len(found) > 1:
        raise RequestError(
            f"Study {name!r} has {len(found)} objectives; what is asked here needs one score."
        )
    maximize = bool(found) and found[0].name == "MAXIMIZE"
    trials: dict[int, FrozenTrial] = {}
    cursor = None
    while True:
        new, cursor = store.finished_since(study_id, cursor)
        trials.update((trial.number, trial) for trial in new)
        attrs = store.study_attrs(study_id)
        yield StoredStudy(
            name=name,
            direction="maximize" if maximize else "minimize",
            score=str(attrs.get("score") or "value"),
            attrs=attrs,
            trials=tuple(trials[number] for number in sorted(trials)),
        )


def is_diverged(trial: FrozenTrial) -> bool:
    """Whether training exploded."""
    return trial.state == TrialState.FAIL and failure(trial).get("kind") == "divergence"


def failure(trial: FrozenTrial) -> dict[str, Any]:
    """The trial's failure object; empty where there is none."""
    found = trial.user_attrs.get("failure")
    return found if isinstance(found, dict) else {}
