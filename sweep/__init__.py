"""Cross-validated choice of regularizer and lambda for PyTorch models, with divergence as data.

    import sweep
    result = sweep.run("studies/digits_mlp.yaml")
    result.best, result.trials(), result.diverged()

    guard = sweep.watch(model, optimizer)       # in a training loop of one's own
    guard.check(loss)                           # raises sweep.Diverged, with the diagnosis

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
        Diverged,
        RequestError,
        SpecError,
        StorageError,
        StudyChangedError,
        SweepError,
    )
    from sweep.guard import watch
    from sweep.search.divergence_aware import DivergenceAwareSampler

__all__ = [
    "DataError",
    "Database",
    "Diverged",
    "DivergenceAwareSampler",
    "RequestError",
    "Result",
    "SpecError",
    "StorageError",
    "Study",
    "StudyChangedError",
    "SweepError",
    "open",
    "run",
    "watch",
]

_HOMES = {
    **dict.fromkeys(("Database", "Result", "Study", "open", "run"), "sweep.api"),
    "watch": "sweep.guard",
    "DivergenceAwareSampler": "sweep.search.divergence_aware",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sweep' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "sweep.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
