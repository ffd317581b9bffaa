"""The largest curvature of least squares on each fold: what decides which steps explode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.problem.prepare import Problem

MOST_OPERATIONS = 2e10
"""About a second on one core; a larger problem goes without."""
ROWS_AT_ONCE = 65_536


def curvature(problem: Problem) -> dict[str, list[float]] | None:
    """The largest eigenvalue of the Hessian of a linear model's squared error / 2, a fold each.

    Over a fold's n training rows, with row weights c of mean 1: `weights` is that of
    X' diag(c) X / n, `with_bias` that of the same with a column of ones beside X. None where it
    would take more than about a second.
    """
    x = problem.x.flatten(start_dim=2)
    n_features = int(x.shape[2]) + 1
    cost = 0.0
    for fold in problem.folds:
        cost += len(fold.train) * n_features**2 + 10.0 * n_features**3
    if cost > MOST_OPERATIONS:
        return None
    found: dict[str, list[float]] = {"weights": [], "with_bias": []}
    for k, fold in enumerate(problem.folds):
        c = np.ones(problem.n_samples)
        if problem.weights is not None:
            c = problem.weights.double().numpy()
            c = c / c[fold.train].mean()
        gram = _gram(problem.x_of(k), n_features, c, fold.train)
        found["weights"].append(float(np.linalg.eigvalsh(gram[:-1, :-1])[-1]))
        found["with_bias"].append(float(np.linalg.eigvalsh(gram)[-1]))
    return found


def _gram(
    x: Any, size: int, c: NDArray[np.float64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[X 1]' diag(c) [X 1] / n over these rows, in float64 without a copy of all of them."""
    total = np.zeros((size, size))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        part = np.ones((len(some), size))
        part[:, :-1] = x[some].flatten(start_dim=1).double().numpy()
        total += part.T @ (part * c[some, None])
    return total / len(rows)
