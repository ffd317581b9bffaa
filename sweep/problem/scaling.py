"""Standardised rows of which only one copy is kept: each fold's numbers are made when asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sweep.problem.columns import (
    BLOCK,
    Columns,
    Rows,
    channel_of,
    numbers_of,
    store,
    store_columns,
    take_rows,
)

MOST_BYTES = 256 << 20
"""More than this in all folds' versions together, and a single copy is kept."""


class Scaling(NamedTuple):
    """Each fold's `mean` and `scale` (F, ...) of its training rows, float64, shaped so that they
    broadcast over a row; a scale of infinity makes a feature 0. `dtype` is that of the result.
    """

    mean: Float[Tensor, "F ..."]
    scale: Float[Tensor, "F ..."]
    dtype: torch.dtype

    def apply(self, x: Shaped[Tensor, "M B ..."], folds: Int[Tensor, " M"]) -> Tensor:
        """(x - mean) / scale of M batches, each as its fold sees it: in float64, then rounded, as
        scikit-learn's StandardScaler and a conversion would do.
        """
        mean, scale = self.mean[folds].unsqueeze(1), self.scale[folds].unsqueeze(1)
        return (x - mean).div_(scale).to(self.dtype)


@dataclass(frozen=True)
class ScaledRows:
    """All rows (N, ...) as one fold sees them; `rows[index]` is a tensor."""

    x: Shaped[Tensor, "N ..."]
    scaling: Scaling
    fold: int

    @property
    def device(self) -> torch.device:
        return self.x.device

    def __getitem__(self, index: Any) -> Tensor:
        fold = torch.tensor([self.fold], device=self.device)
        return self.scaling.apply(self.x[index].unsqueeze(0), fold)[0]


def is_large(versions: int, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether so many versions of all rows are too much to keep."""
    return versions * math.prod(shape) * dtype.itemsize > MOST_BYTES


def unscaled_array(
    source: NDArray[Any], axis: int, fits: Sequence[Rows], dtype: torch.dtype
) -> tuple[Tensor, Scaling]:
    """The rows of an array (1, N, ...) as they are, and the scaling of each index of an axis."""
    x = torch.empty((1, *source.shape), dtype=_exact([source.dtype], dtype))
    channels = source.shape[axis]
    mean, scale = np.empty((2, len(fits), channels))
    for channel in range(channels):
        values = np.take(source, channel, axis).astype(np.float64)
        channel_of(x[0].numpy(), axis, channel)[...] = values
        for version, rows in enumerate(fits):
            fit = _scale_of(values[rows].reshape(-1, 1))
            mean[version, channel], scale[version, channel] = fit[0][0], fit[1][0]
            ends = np.array([values.min(), values.max()])
            stored = np.empty(2, dtype=_kind(dtype))
            store(stored, (ends - fit[0]) / fit[1], f"X, channel {channel}", dtype)
    shape = [len(fits), *(channels if a == axis else 1 for a in range(1, source.ndim))]
    means, scales = (torch.from_numpy(fitted).reshape(shape) for fitted in (mean, scale))
    return x, Scaling(means, scales, dtype)


def unscaled_columns(
    x: NDArray[Any] | pd.DataFrame,
    names: Sequence[str],
    columns: Columns,
    fits: Sequence[Rows],
    dtype: torch.dtype,
) -> tuple[Tensor, Scaling]:
    """The numeric columns (1, N, d) as they are, and their scaling."""
    kinds = x.dtypes.tolist() if isinstance(x, pd.DataFrame) else [x.dtype]
    out = torch.empty((1, len(x), columns.width), dtype=_exact(kinds, dtype))
    mean, scale = np.empty((2, len(fits), columns.width))
    size = max(1, BLOCK // len(x))
    for start in range(0, len(columns.numeric), size):
        block = columns.numeric[start : start + size]
        values = numbers_of(x, block)
        slots = [columns.slots[j] for j in block]
        out[0].numpy()[:, slots] = values
        ends = np.stack([values.min(axis=0), values.max(axis=0)])
        for version, rows in enumerate(fits):
            fit = _scale_of(take_rows(values, rows))
            mean[version, slots], scale[version, slots] = fit
            stored = np.empty(ends.shape, dtype=_kind(dtype))
            scaled = (ends - fit[0]) / fit[1]
            store_columns(stored, scaled, range(len(block)), [names[j] for j in block], dtype)
    scaling = Scaling(torch.from_numpy(mean), torch.from_numpy(scale), dtype)
    return out, scaling


def _exact(sources: Sequence[np.dtype[Any]], dtype: torch.dtype) -> torch.dtype:
    """`dtype` if it holds all numbers of these kinds as they are, else float64."""
    return dtype if all(np.can_cast(kind, _kind(dtype)) for kind in sources) else torch.float64


def _kind(dtype: torch.dtype) -> np.dtype[Any]:
    return np.dtype(str(dtype).removeprefix("torch."))


def _scale_of(train: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of columns, the latter infinite for a constant one."""
    scaler = StandardScaler().fit(train)
    constant = ~(np.fmin.reduce(train, axis=0) < np.fmax.reduce(train, axis=0))
    return scaler.mean_, np.where(constant, np.inf, scaler.scale_)
