"""Why a user's module cannot be batched: in words, from what torch or a probe said about it."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

MOST_LETTERS = 70
_HOUSES = tuple(str(Path(p).resolve().parent) for p in (torch.__file__, Path(__file__).parent))
_READS = ".item()"
_WORDS = {
    "data-dependent control flow": "model branches on the data",
    "dynamic shape": "the size of what the model computes depends on the data",
    "doesn't have storage": "model leaves torch",
    "autograd.Function": "model has an operator that cannot be batched",
    "Batching rule not implemented": "model has an operator that cannot be batched",
    "doesn't match the broadcast shape": "model changes a tensor of its own in place",
    "inplace arithmetic": "model changes a tensor of its own in place",
}


def explain(error: BaseException) -> str:
    """Why a step of lanes raised: words for it where there are any, and the line of the user's."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    line = _line_of(error)
    where = "" if line is None else f" ({Path(line.filename).name}, line {line.lineno})"
    if f"calling {_READS}" in text:
        # torch says the same of both.
        reads = line is not None and ".item(" in (line.line or "")
        return (f"model uses {_READS}" if reads else "model branches on the data") + where
    for said, words in _WORDS.items():
        if said in text:
            return words + where
    return text + where


def in_short(why: str) -> str:
    """At most so many letters of it, and no place."""
    why = why.rpartition(" (")[0] or why if why.endswith(")") else why
    return why if len(why) <= MOST_LETTERS else why[:MOST_LETTERS].rstrip() + "..."


def _line_of(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost line that is neither torch's nor sweep's."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not str(Path(frame.filename).resolve()).startswith(_HOUSES)
        and not frame.filename.startswith("<")
    ]
    return own[-1] if own else None
