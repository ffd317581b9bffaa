"""The note and the figures that the Optuna dashboard shows beside a study.

Kept where and how optuna_dashboard keeps them (`save_note`, 0.20 and 0.21): pieces of 2045
characters among the study's system attributes. Its function takes a transaction a piece; here it is
one, so that nobody reads half a note and several writers never mix theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sweep.store import rows
from sweep.store.connection import read, write
from sweep.store.copying import study_system_attrs as attrs
from sweep.store.storage import Store

VERSION = "dashboard:note_ver"
PIECE = "dashboard:note_str:"
PIECE_LENGTH = 2045
FIGURE = "dashboard:plot_data:"


def note(store: Store, study_id: int) -> str:
    """The study's note; empty without one."""
    return read(store.engine, lambda connection: _note(connection, study_id))


def write_note(store: Store, study_id: int, change: Callable[[str], str]) -> None:
    """Replaces the study's note by `change(note)`; a note that stays the same is left alone."""

    def work(connection: Connection, again: bool) -> None:
        # Two writers: the second waits here, and sees the note of the first.
        locked = sa.select(rows.studies.c.study_id).where(rows.studies.c.study_id == study_id)
        if connection.execute(locked.with_for_update()).scalar() is None:
            return
        before = _note(connection, study_id)
        after = change(before)
        if after == before:
            return
        mine = attrs.c.study_id == study_id
        version = connection.execute(
            sa.select(attrs.c.value_json).where(mine, attrs.c.key == VERSION)
        ).scalar()
        connection.execute(
            sa.delete(attrs).where(mine, attrs.c.key.startswith(PIECE, autoescape=True))
        )
        pieces = [after[i : i + PIECE_LENGTH] for i in range(0, len(after), PIECE_LENGTH)]
        new = {f"{PIECE}{i}": rows.to_json(piece) for i, piece in enumerate(pieces)}
        new[VERSION] = str(int(json.loads(version or "0")) + 1)
        rows.upsert(
            connection,
            attrs,
            [{"study_id": study_id, "key": key, "value_json": text} for key, text in new.items()],
        )

    write(store.engine, work)


def write_figure(store: Store, study_id: int, name: str, figure: str) -> None:
    """Keeps a plotly figure, as JSON, where `optuna_dashboard.save_plotly_graph_object` does.

    `name` is made of letters, digits, `-`, `_` and `.`. In one transaction, as the note is.
    """
    prefix = f"{FIGURE}{name}:"
    pieces = [figure[i : i + PIECE_LENGTH] for i in range(0, len(figure), PIECE_LENGTH)]

    def work(connection: Connection, again: bool) -> None:
        locked = sa.select(rows.studies.c.study_id).where(rows.studies.c.study_id == study_id)
        if connection.execute(locked.with_for_update()).scalar() is None:
            return
        mine = attrs.c.study_id == study_id
        connection.execute(
            sa.delete(attrs).where(mine, attrs.c.key.startswith(prefix, autoescape=True))
        )
        rows.upsert(
            connection,
            attrs,
            [
                {"study_id": study_id, "key": f"{prefix}{i}", "value_json": rows.to_json(piece)}
                for i, piece in enumerate(pieces)
            ],
        )

    write(store.engine, work)


def _note(connection: Connection, study_id: int) -> str:
    wanted = sa.select(attrs.c.key, attrs.c.value_json).where(
        attrs.c.study_id == study_id, attrs.c.key.startswith(PIECE, autoescape=True)
    )
    pieces = {
        int(key.removeprefix(PIECE)): json.loads(text) for key, text in connection.execute(wanted)
    }
    return "".join(pieces[i] for i in sorted(pieces))
