"""The error tree: one base, so that the command line turns every expected failure into a sentence.

A message says what was given, what exists, and what to do. `exit_code` is what the process
returns when the error reaches the command line (README, Exit codes).
"""

from __future__ import annotations

from typing import ClassVar


class SweepError(Exception):
    """Something failed while running."""

    exit_code: ClassVar[int] = 1


class RequestError(SweepError):
    """The request is wrong: usage, an unknown study, an address that cannot be opened."""

    exit_code: ClassVar[int] = 2


class SpecError(RequestError):
    """A study file is wrong; the message names file, key path, what was given, what is allowed."""


class DataError(RequestError):
    """The data cannot be learned from: missing, empty, infinite, or too few rows a class."""


class StorageError(SweepError):
    """The study database cannot be used: unreachable, locked, full, or no database at all."""


class StudyChangedError(RequestError):
    """A stored study and the file that would continue it differ in substance."""
