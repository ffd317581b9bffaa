"""Least squares whose loss is sum(w^2): X = 2I, y = 0, twice, so that each copy is a fold."""

import numpy as np


def two_copies() -> dict[str, np.ndarray]:
    x = np.vstack([2 * np.eye(2), 2 * np.eye(2)])
    return {"X": x, "y": np.zeros(4), "folds": np.array([0, 0, 1, 1])}
