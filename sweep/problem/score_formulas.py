"""Scores as formulas on tensors, to be mapped over many models.

Each takes (kind, outputs (n, K), y (n,), row weights w (n,)) and gives a scalar, equal to
scikit-learn's metric with sample_weight = w; rows of weight 0 do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sweep.problem.losses import loss_per_sample


def mean(terms: Tensor, w: Tensor) -> Float[Tensor, ""]:
    # A padding row may hold anything, and 0 * NaN is NaN.
    return torch.where(w > 0, terms * w, torch.zeros_like(terms)).sum() / w.sum()


def residuals(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs[:, 0] - y.to(outputs.dtype)


def log_loss(kind: str, outputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return mean(loss_per_sample(kind, outputs, y), w)


def accuracy(kind: str, outputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
    predicted = (outputs[:, 0] > 0).long() if kind == "binary" else outputs.argmax(dim=1)
    return mean((predicted == y.long()).to(outputs.dtype), w)


def mse(kind: str, outputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return mean(residuals(outputs, y) ** 2, w)


def rmse(kind: str, outputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return mse(kind, outputs, y, w).sqrt()


def mae(kind: str, outputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return mean(residuals(outputs, y).abs(), w)


def r2(kind: str, outputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """1 - mse / variance of y; for constant y 1 if all residuals are 0, else 0; NaN of one row."""
    target = y.to(outputs.dtype)
    spread = mean((target - mean(target, w)) ** 2, w)
    error = mse(kind, outputs, y, w)
    one, zero = torch.ones_like(error), torch.zeros_like(error)
    constant = torch.where(error == 0, one, zero)
    share = 1 - error / torch.where(spread > 0, spread, one)
    value = torch.where(spread > 0, share, constant)
    return torch.where((w > 0).sum() < 2, torch.full_like(value, math.nan), value)


FORMULAS: dict[str, Callable[[str, Tensor, Tensor, Tensor], Tensor]] = {
    "neg_log_loss": log_loss,
    "accuracy": accuracy,
    "neg_mean_squared_error": mse,
    "neg_root_mean_squared_error": rmse,
    "neg_mean_absolute_error": mae,
    "r2": r2,
}
