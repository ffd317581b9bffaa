"""A study's problem as tensors: what every trial is trained on, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sweep.errors import DataError, SpecError
from sweep.problem.data import Dataset, load_data
from sweep.problem.features import make_features
from sweep.problem.folds import Fold, fold_fingerprint, make_folds
from sweep.problem.layout import arrange
from sweep.problem.scaling import ScaledRows, Scaling
from sweep.spec import StudySpec

DTYPES = {"float32": torch.float32, "float64": torch.float64}

Kind = Literal["regression", "binary", "multiclass"]


@dataclass(frozen=True)
class Problem:
    """Rows, targets and folds of a study, ready to train on.

    `x` (V, N, *input_shape) in the study's dtype: V = 1 where all folds see the same numbers,
    else one version a fold; or, with `scaling`, the one version that each fold's is made from.
    `y` (V', N): the target (regression), 0.0 or 1.0 (binary), or the int64 code of the class
    (multiclass). `columns_of_features` names the source's column of each of the `feature_names`
    (both empty for images and sequences). `classes`: the labels, sorted.
    """

    x: Float[Tensor, "V N *input_shape"]
    y: Shaped[Tensor, "V N"]
    weights: Float[Tensor, " N"] | None
    folds: tuple[Fold, ...]
    kind: Kind
    n_outputs: int
    input_shape: tuple[int, ...]
    feature_names: tuple[str, ...]
    columns_of_features: tuple[str, ...]
    classes: tuple[Any, ...] | None
    groups: NDArray[np.int64] | None
    notices: tuple[str, ...]
    fingerprint: str
    fold_fingerprints: tuple[str, ...]
    scaling: Scaling | None = None

    @property
    def n_samples(self) -> int:
        return int(self.x.shape[1])

    def x_of(self, fold: int) -> Tensor | ScaledRows:
        """All rows (N, *input_shape) as fold number `fold` sees them; index it by rows."""
        if self.scaling is not None:
            return ScaledRows(self.x[0], self.scaling, fold)
        return self.x[fold if len(self.x) > 1 else 0]

    def y_of(self, fold: int) -> Shaped[Tensor, " N"]:
        """All targets as fold number `fold` sees them."""
        return self.y[fold if len(self.y) > 1 else 0]


def prepare(spec: StudySpec, directory: Path) -> Problem:
    """Loads, splits and transforms the data of a study file in `directory`.

    Raises SpecError or DataError, one sentence each, for whatever cannot be learned from.
    """
    if spec.task == "classification" and spec.data.standardize_target != "none":
        raise SpecError("data.standardize_target is for task regression; labels have no scale.")
    data = load_data(spec, directory)
    # Arrow keeps what it freed, and the versions of a large table need the room.
    pa.default_memory_pool().release_unused()
    folds = make_folds(spec, data)
    notices = [
        *data.notices,
        *_group_notices(spec, data),
        *_target_notices(spec, data, folds),
    ]
    layout = arrange(spec, data)
    dtype = DTYPES[spec.train.dtype]
    features = make_features(layout, folds, spec.data.standardize, dtype)
    n_classes = 0 if data.classes is None else len(data.classes)
    kind: Kind = "regression"
    if n_classes:
        kind = "binary" if n_classes == 2 else "multiclass"
    return Problem(
        x=features.x,
        y=_targets(spec, data, folds, kind, dtype),
        weights=_weights(data, folds, dtype),
        folds=tuple(folds),
        kind=kind,
        n_outputs=n_classes if kind == "multiclass" else 1,
        input_shape=tuple(features.x.shape[2:]),
        feature_names=features.names,
        columns_of_features=features.columns,
        classes=data.classes,
        groups=data.groups,
        notices=(*notices, *features.notices),
        fingerprint=data.fingerprint,
        fold_fingerprints=tuple(fold_fingerprint(fold) for fold in folds),
        scaling=features.scaling,
    )


def _targets(
    spec: StudySpec, data: Dataset, folds: list[Fold], kind: Kind, dtype: torch.dtype
) -> Tensor:
    if kind == "multiclass":
        return torch.from_numpy(data.y)[None]
    values = data.y.astype(np.float64)[:, None]
    scale = spec.data.standardize_target
    if scale == "fold":
        versions = [StandardScaler().fit(values[f.train]).transform(values) for f in folds]
    elif scale == "all":
        versions = [StandardScaler().fit_transform(values)]
    else:
        versions = [values]
    y = torch.from_numpy(np.stack(versions)[:, :, 0]).to(dtype)
    if not torch.isfinite(y).all():
        raise DataError(
            f"{data.source}: the target's values, up to {np.abs(data.y).max():g}, are too large "
            f"for {dtype}; use data.standardize_target, or train.dtype: float64."
        )
    return y


def _weights(data: Dataset, folds: list[Fold], dtype: torch.dtype) -> Tensor | None:
    if data.weights is None:
        return None
    for k, fold in enumerate(folds):
        for rows, name in ((fold.train, "training"), (fold.test, "test")):
            if not data.weights[rows].any():
                raise DataError(f"{data.source}: the {name} rows of fold {k} all have weight 0.")
    return torch.from_numpy(data.weights).to(dtype)


def _group_notices(spec: StudySpec, data: Dataset) -> list[str]:
    if data.groups is None or spec.fold_kind in ("group", "column"):
        return []
    return [
        f"{data.source} brings groups, which cross_validation.kind {spec.fold_kind} does not keep "
        "together; kind group does."
    ]


def _target_notices(spec: StudySpec, data: Dataset, folds: list[Fold]) -> list[str]:
    if data.classes is None:
        std = float(np.std(data.y))
        far = (0 < std < 0.1) or std > 10
        if not far or spec.data.standardize_target != "none":
            return []
        return [
            f"The target's standard deviation is {std:.3g}; training is easier to tune with "
            "data.standardize_target: fold."
        ]
    notices = []
    for k, fold in enumerate(folds):
        absent = set(range(len(data.classes))) - set(np.unique(data.y[fold.train]).tolist())
        if absent:
            labels = ", ".join(repr(data.classes[code]) for code in sorted(absent))
            notices.append(f"Fold {k}: no training row has class {labels}.")
    return notices
