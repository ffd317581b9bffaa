"""The form in which a model takes its rows: flat features, images, or sequences."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sweep.errors import DataError, SpecError
from sweep.problem.data import Dataset
from sweep.spec import StudySpec

RECURRENT = ("rnn", "gru", "lstm")


class Layout(NamedTuple):
    """`x` (N, ...) as the model takes it, not yet scaled.

    `channel_axis` is None for flat features (`x` may then be a table), else the axis of an array
    whose every index is one channel or feature, scaled as one.
    """

    x: NDArray[Any] | pd.DataFrame
    feature_names: tuple[str, ...]
    channel_axis: int | None
    notices: tuple[str, ...] = ()


def arrange(spec: StudySpec, data: Dataset) -> Layout:
    """The rows for `model.kind`.

    linear, mlp     flat features; an array of more axes is flattened, `data.shape` not looked at
    cnn             images (channels, height, width); one channel where there is no such axis
    rnn, gru, lstm  sequences (steps, features); a flat array is a sequence of single numbers
    python:...      the array as it is, or reshaped to `data.shape`

    Flat rows are reshaped to `data.shape` (scikit-learn's digits to 8 x 8 without being told).
    Raises SpecError, naming `data.shape`, where the rows have no such form.
    """
    kind = spec.model.kind
    if kind in ("linear", "mlp"):
        return _flat(data)
    if kind == "cnn":
        x = _shaped(spec, data, (2, 3))
        if x is None or x.ndim not in (3, 4):
            raise _no_form(data, kind, "images", "[height, width] or [channels, height, width]")
        return _images(_complete(data, x[:, None] if x.ndim == 3 else x))
    if kind in RECURRENT:
        x = _shaped(spec, data, (2,))
        if x is None and isinstance(data.x, np.ndarray) and not data.source.startswith("sklearn:"):
            x = data.x[:, :, None]
        if x is None or x.ndim != 3:
            raise _no_form(data, kind, "sequences", "[steps, features]")
        return Layout(_complete(data, x), (), 2)
    if spec.data.shape is None and data.x.ndim == 2:
        return _flat(data)
    x = _shaped(spec, data, (1, 2, 3, 4))
    assert x is not None
    # Images (channels, height, width) are scaled per channel, anything else by its last axis.
    return Layout(_complete(data, x), (), 1 if x.ndim == 4 else x.ndim - 1)


def _flat(data: Dataset) -> Layout:
    if isinstance(data.x, pd.DataFrame) or data.x.ndim == 2:
        return Layout(data.x, data.feature_names, None)
    x = data.x.reshape(len(data.x), -1)
    return Layout(x, tuple(f"x{j}" for j in range(x.shape[1])), None)


def _images(x: NDArray[Any]) -> Layout:
    channels, height, width = x.shape[1:]
    notices: tuple[str, ...] = ()
    if width in (1, 3, 4) and channels > 4:
        notices = (
            f"X: images are read as (channels, height, width) = ({channels}, {height}, {width}); "
            "if the channels come last, move that axis first.",
        )
    return Layout(x, (), 1, notices)


def _shaped(spec: StudySpec, data: Dataset, axes: tuple[int, ...]) -> NDArray[Any] | None:
    """The rows with axes of their own, or None where flat rows have no known shape."""
    given = spec.data.shape
    if given is None and data.x.ndim > 2:
        return np.asarray(data.x)
    shape = tuple(given) if given is not None else data.image_shape
    if shape is None:
        return None
    if len(shape) not in axes:
        allowed = " or ".join(map(str, axes))
        raise SpecError(
            f"data.shape: {list(shape)} has {len(shape)} numbers, but model.kind {spec.model.kind} "
            f"takes {allowed}."
        )
    n_values = math.prod(data.x.shape[1:])
    if math.prod(shape) != n_values:
        raise SpecError(
            f"data.shape: {list(shape)} needs {math.prod(shape)} features a row, and {data.source} "
            f"has {n_values}."
        )
    return _matrix(data).reshape(-1, *shape)


def _matrix(data: Dataset) -> NDArray[Any]:
    if not isinstance(data.x, pd.DataFrame):
        return data.x
    for name in data.x.columns:
        if data.x[name].dtype == object:
            raise SpecError(
                f"data.shape: column {name!r} of {data.source} is text, which has no place in an "
                "array of numbers; leave it out with data.drop."
            )
    return _complete(data, data.x.to_numpy())


def _complete(data: Dataset, x: NDArray[Any]) -> NDArray[Any]:
    if x.dtype.kind == "f":
        for row in range(len(x)):
            if np.isnan(x[row]).any():
                raise DataError(
                    f"{data.source}: row {row} (counted from 0) has a missing value, which images "
                    "and sequences may not have."
                )
    return x


def _no_form(data: Dataset, kind: str, form: str, shape: str) -> SpecError:
    rows = ", ".join(map(str, data.x.shape[1:]))
    return SpecError(
        f"model.kind {kind} takes {form}, and the rows of {data.source} have shape ({rows}): "
        f"say how to read them with data.shape: {shape}."
    )
