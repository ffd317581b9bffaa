"""Cross-validated choice of regularizer and lambda for PyTorch models, with divergence as data.

    import sweep
    result = sweep.run("studies/digits_mlp.yaml")
    result.best, result.trials(), result.diverged()

Names are imported when they are first used, so that `import sweep`, and a command that only
reads the database, does not wait for torch, scikit-learn or pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.api import Database, Result, Study, open, run
    from sweep.errors import (
        DataError,
        RequestError,
        SpecError,
        StorageError,
        StudyChangedError,
        SweepError,
    )

__all__ = [
    "DataError",
    "Database",
    "RequestError",
    "Result",
    "SpecError",
    "StorageError",
    "Study",
    "StudyChangedError",
    "SweepError",
    "open",
    "run",
]

_OF_API = frozenset({"Database", "Result", "Study", "open", "run"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sweep' has no attribute {name!r}")
    home = "sweep.api" if name in _OF_API else "sweep.errors"
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
