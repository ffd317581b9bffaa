"""The error tree: one base, so that the command line turns every expected failure into a sentence.

A message says what was given, what exists, and what to do. `exit_code` is what the process
returns when the error reaches the command line (README, Exit codes).
"""

from __future__ import annotations

from typing import Any, ClassVar


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


class Diverged(SweepError):
    """Training has exploded (`sweep.watch`); `failure` is the diagnosis, as a study stores it."""

    def __init__(self, message: str, failure: dict[str, Any]) -> None:
        super().__init__(message)
        self.failure = failure

    def __reduce__(self) -> tuple[type[Diverged], tuple[str, dict[str, Any]]]:
        # Processes hand exceptions on by pickling their arguments.
        return type(self), (str(self), self.failure)
