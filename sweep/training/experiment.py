"""What all members of a study share: the data and folds, the specification, the scores."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sweep.errors import SpecError
from sweep.problem.models import (
    build_model,
    parameter_count,
    penalized,
    rows_interact,
    structure_key,
)
from sweep.problem.prepare import DTYPES, Problem
from sweep.problem.scores import Score, get_score
from sweep.spec import Setting, StudySpec
from sweep.spec.models import BUILT_IN
from sweep.training.device import CPU, moved
from sweep.training.probe import ROWS, Traits, probe
from sweep.training.start import Start

KEPT_STARTS, MOST_SHARED = 64, 10**6
"""So many models, of so many parameters at most, are kept as they start."""


@dataclass(frozen=True)
class Experiment:
    """A study ready to train: `problem` is prepared from `spec`, found in `directory`.

    `problem`, and whatever is made of it here, is on the CPU; so is every model as it starts, so
    that it starts alike everywhere. Training moves both to `device`.
    """

    problem: Problem
    spec: StudySpec
    directory: Path
    device: torch.device = CPU

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.spec.train.dtype]

    @cached_property
    def placed(self) -> Problem:
        """The problem with its tensors on the device."""
        of = self.problem
        if self.device == CPU:
            return of
        x, y, weights, scaling = moved((of.x, of.y, of.weights, of.scaling), self.device)
        return replace(of, x=x, y=y, weights=weights, scaling=scaling)

    @property
    def where(self) -> str:
        """`, cuda`, to be added to how members train; nothing on the CPU."""
        return "" if self.device == CPU else f", {self.device.type}"

    def build_model(self, setting: Setting, fold: int) -> nn.Module:
        """The model of a trial with this setting, as it starts on this fold."""
        return build_model(
            setting.model_kind,
            setting.model,
            self.problem.input_shape,
            self.problem.n_outputs,
            seed=self.spec.seed,
            fold=fold,
            dtype=self.dtype,
            directory=self.directory,
        )

    def start_of(self, setting: Setting, fold: int) -> Start:
        """`build_model`, for looking at alone: members that start alike share it."""
        if setting.model_kind not in BUILT_IN:
            return self._start(setting, fold)
        key = (setting.model_kind, json.dumps(setting.model, sort_keys=True, default=repr), fold)
        start = self._starts.pop(key, None)
        if start is None:
            start = self._start(setting, fold)
            if parameter_count(start.module) > MOST_SHARED:
                return start
        self._starts[key] = start
        if len(self._starts) > KEPT_STARTS:
            del self._starts[next(iter(self._starts))]
        return start

    def _start(self, setting: Setting, fold: int) -> Start:
        module = self.build_model(setting, fold)
        return Start(
            module=module,
            structure=structure_key(setting.model_kind, setting.model),
            traits=self.traits(setting, module),
            penalized=self.penalized(module),
        )

    @cached_property
    def _starts(self) -> dict[Any, Start]:
        """The least recently used comes first."""
        return {}

    def penalized(self, module: nn.Module) -> tuple[str, ...]:
        """The names of the parameters that the study's regularizers act on."""
        spec = self.spec
        names = penalized(module, penalize_bias=spec.penalize_bias, patterns=spec.penalize)
        return tuple(names)

    def traits(self, setting: Setting, module: nn.Module) -> Traits:
        """What is known of the setting's model; a user's own is tried out, once a structure."""
        if setting.model_kind in BUILT_IN:
            return Traits(rows_interact(module))
        key = structure_key(setting.model_kind, setting.model)
        if key not in self._traits:
            rows = torch.from_numpy(self.problem.folds[0].train[:ROWS])
            self._traits[key] = probe(module, self.problem.x_of(0)[rows])
        return self._traits[key]

    @cached_property
    def _traits(self) -> dict[Any, Traits]:
        return {}

    @cached_property
    def score(self) -> Score:
        return self._score(self.spec.score_name)

    @cached_property
    def more_scores(self) -> tuple[Score, ...]:
        return tuple(self._score(name) for name in self.spec.scores)

    @property
    def all_scores(self) -> list[Score]:
        """The study's score first, then those that are only noted."""
        return [self.score, *self.more_scores]

    def _score(self, name: str) -> Score:
        return get_score(name, self.problem.kind, self.problem.classes)

    @cached_property
    def row_weights(self) -> tuple[Tensor | None, ...]:
        """For each fold, the rows' weights divided by their mean over its training rows."""
        weights = self.problem.weights
        if weights is None:
            return (None,) * len(self.problem.folds)
        return tuple(
            weights / weights[torch.from_numpy(fold.train)].mean() for fold in self.problem.folds
        )

    @cached_property
    def feature_groups(self) -> Tensor | None:
        """For each feature, the number of its group (`feature_groups`; the rest stand alone).

        A column that became several features (one-hot) is named as the column or as a feature.
        """
        groups = self.spec.feature_groups
        if groups is None:
            return None
        columns = self.problem.columns_of_features
        names = self.problem.feature_names
        number: dict[str, int] = {}
        for i, (group, members) in enumerate(groups.items()):
            for member in members:
                if member not in columns and member not in names:
                    known = ", ".join(dict.fromkeys(columns))
                    raise SpecError(
                        f"feature_groups.{group}: no column {member!r}. Columns: {known}."
                    )
                if number.setdefault(member, i) != i:
                    raise SpecError(f"feature_groups: {member!r} is in two groups.")
        alone = len(groups)
        index = []
        for name, column in zip(names, columns, strict=True):
            found = number.get(name, number.get(column))
            index.append(found if found is not None else alone)
            alone += found is None
        return torch.from_numpy(np.asarray(index, dtype=np.int64))
