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
        if not _lock(connection, study_id):
            return
        before = _note(connection, study_id)
        after = change(before)
        if after == before:
            return
        mine = attrs.c.study_id == study_id
        version = connection.execute(
            sa.select(attrs.c.value_json).where(mine, attrs.c.key == VERSION)
        ).scalar()
        _replace(connection, study_id, PIECE, after)
        new = {"key": VERSION, "value_json": str(int(json.loads(version or "0")) + 1)}
        rows.upsert(connection, attrs, [{"study_id": study_id, **new}])

    write(store.engine, work)


def write_figure(store: Store, study_id: int, name: str, figure: str) -> None:
    """Keeps a plotly figure, as JSON, where `optuna_dashboard.save_plotly_graph_object` does.

    `name` is made of letters, digits, `-`, `_` and `.`. In one transaction, as the note is.
    """

    def work(connection: Connection, again: bool) -> None:
        if _lock(connection, study_id):
            _replace(connection, study_id, f"{FIGURE}{name}:", figure)

    write(store.engine, work)


def _lock(connection: Connection, study_id: int) -> bool:
    """Of two writers the second waits here, and sees what the first wrote; False: no such study."""
    locked = sa.select(rows.studies.c.study_id).where(rows.studies.c.study_id == study_id)
    return connection.execute(locked.with_for_update()).scalar() is not None


def _replace(connection: Connection, study_id: int, prefix: str, text: str) -> None:
    """Puts `text`, in pieces, in the place of the attributes whose key starts with `prefix`."""
    kept = attrs.c.key.startswith(prefix, autoescape=True)
    connection.execute(sa.delete(attrs).where(attrs.c.study_id == study_id, kept))
    pieces = [text[i : i + PIECE_LENGTH] for i in range(0, len(text), PIECE_LENGTH)]
    new = [
        {"study_id": study_id, "key": f"{prefix}{i}", "value_json": rows.to_json(piece)}
        for i, piece in enumerate(pieces)
    ]
    rows.upsert(connection, attrs, new)


def _note(connection: Connection, study_id: int) -> str:
    wanted = sa.select(attrs.c.key, attrs.c.value_json).where(
        attrs.c.study_id == study_id, attrs.c.key.startswith(PIECE, autoescape=True)
    )
    pieces = {
        int(key.removeprefix(PIECE)): json.loads(text) for key, text in connection.execute(wanted)
    }
    return "".join(pieces[i] for i in sorted(pieces))
