"""Small data sets that the training tests name as python:toy_data:NAME."""

import numpy as np
import torch
from torch import Tensor, nn


def rows(n=62, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(n, d))


def three_classes():
    rng, x = rows()
    y = (x @ rng.normal(size=(5, 3)) + 0.5 * rng.normal(size=(62, 3))).argmax(1)
    return x, y


def two_classes():
    rng, x = rows()
    return x, (x @ rng.normal(size=5) + rng.normal(size=62) > 0).astype(int)


def numbers():
    rng, x = rows()
    return x, x @ np.array([1.0, -2.0, 0.0, 0.0, 0.5]) + 0.3 * rng.normal(size=62)


def weighted():
    rng, x = rows()
    return {"X": x, "y": x[:, 0] + 0.3 * rng.normal(size=62), "weights": rng.uniform(0.1, 3, 62)}


def images():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(48, 1, 6, 6))
    return x, (x[:, 0, :3].mean((1, 2)) > x[:, 0, 3:].mean((1, 2))).astype(int)


def sequences():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(48, 7, 3))
    return x, x[:, -1, 0] - x[:, 2, 1]


class Residual(nn.Module):
    def __init__(self, n_features: int, n_outputs: int, width: int = 6):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(n_features, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.2)
        )
        self.skip = nn.Linear(n_features, width)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x) + self.skip(x))


class LooksAtData(Residual):
    """Cannot be batched: what it computes depends on a number it reads out."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean().item() > 0:
            return super().forward(x)
        return super().forward(2 * x)


class BreaksLate(Residual):
    """Raises once a weight is large."""

    def forward(self, x: Tensor) -> Tensor:
        if float(self.head.weight.abs().max()) > 3:
            raise RuntimeError("the head is too large")
        return super().forward(x)


class Cauchy:
    """A user's regularizer without a prox: lam * sum log(1 + w^2)."""

    def __init__(self, lam: Tensor):
        self.lam = lam

    def value(self, w: Tensor) -> Tensor:
        return self.lam * torch.log1p(w * w).sum()


def _diabetes():
    from sklearn.datasets import load_diabetes
    from sklearn.preprocessing import StandardScaler

    x, y = load_diabetes(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    return x, (y - y.mean()) / y.std()


def diabetes_twice():
    """Two copies, one a fold: each fold trains on all 442 rows, standardised with ddof 0."""
    x, y = _diabetes()
    return {"X": np.vstack([x, x]), "y": np.tile(y, 2), "folds": np.repeat([0, 1], len(y))}


def separable_twice():
    """Two classes, twice, one copy a fold."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 3))
    y = (x[:, 0] > 0).astype(int)
    return {"X": np.vstack([x, x]), "y": np.tile(y, 2), "folds": np.repeat([0, 1], 40)}
