"""Mistakes that every trial would meet are met once, before anything is trained or written."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sweep.errors import SpecError, SweepError
from sweep.problem.models import parameter_count
from sweep.problem.plugins import describe
from sweep.problem.prepare import prepare
from sweep.spec import (
    Choices,
    DivergenceSpec,
    IntRange,
    Setting,
    StudyFile,
    StudySpec,
    encode_choice,
)
from sweep.spec.exact import EXACT
from sweep.spec.models import BUILT_IN
from sweep.training.convex_penalty import make_convex_penalty
from sweep.training.device import choose_device
from sweep.training.experiment import Experiment
from sweep.training.memory import machine_bytes
from sweep.training.penalty import make_penalty
from sweep.training.reference import as_matrix
from sweep.training.through_time import recurrent_weights

MOST_MODELS = 16


def make_experiment(file: StudyFile, device: str = "cpu") -> tuple[Experiment, list[nn.Module]]:
    """A study file with its data, ready to train on a device, and models as `preflight` builds
    them.

    Raises the SweepError that a trial would meet, with the file's name before it; RequestError
    where there is no such device (`choose_device`).
    """
    chosen = choose_device(device, file.spec)
    try:
        problem = prepare(file.spec, file.directory)
        experiment = Experiment(problem, file.spec, file.directory, chosen)
        return experiment, preflight(experiment)
    except SweepError as error:
        raise type(error)(f"{file.name}: {error}") from error


def preflight(experiment: Experiment) -> list[nn.Module]:
    """Builds the models and penalties that the study may ask for (the first `MOST_MODELS`).

    Raises the SweepError that a trial would have failed with.
    """
    spec = experiment.spec
    _ = experiment.all_scores, experiment.feature_groups
    _check_patience(experiment)
    modules = []
    for params in example_params(spec):
        setting = spec.setting(params)
        if setting.model_kind in BUILT_IN:
            with torch.device("meta"):
                _check_size(experiment, experiment.build_model(setting, fold=0))
        module = experiment.build_model(setting, fold=0)
        if setting.model_kind not in BUILT_IN:
            _check_module(experiment, setting, module)
        _check_penalty(experiment, setting, module, experiment.penalized(module))
        modules.append(module)
    return modules


def _check_patience(experiment: Experiment) -> None:
    """Refuses a window that is longer than the longest training: it could never be full."""
    spec = experiment.spec
    patience = spec.divergence.patience
    rows = max(len(fold.train) for fold in experiment.problem.folds)
    epochs, size = spec.train.epochs, spec.train.batch_size
    longest = _ends(epochs)[1] * max(1, -(-rows // _ends(size, rows)[0]))
    if patience != DivergenceSpec().patience and patience > longest:
        raise SpecError(
            f"divergence.patience: {patience} was given, but the longest training has {longest} "
            "updates, so no loss could stay high for so long. Give a smaller one, or more epochs."
        )


def _ends(knob: Any, full: int = 1) -> tuple[int, int]:
    """The least and the greatest value of a whole-number knob; `full` batches have so many."""
    if isinstance(knob, IntRange):
        return knob.low, knob.high
    listed = knob.choices if isinstance(knob, Choices) else [knob]
    numbers = [full if value == "full" else int(value) for value in listed]
    return min(numbers), max(numbers)


def _check_module(experiment: Experiment, setting: Setting, module: nn.Module) -> None:
    """Refuses a user's module without parameters, or that returns what no loss can be made of.

    One that raises is let through: it may raise on these rows alone, and each trial tells why.
    """
    kind, problem = setting.model_kind, experiment.problem
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise SpecError(f"model.kind: {kind} returned a module that has nothing to train.")
    rows = problem.x_of(0)[torch.from_numpy(problem.folds[0].train[:4])]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = copy.deepcopy(module).train()(rows)
    except (Exception, SystemExit):
        return
    try:
        as_matrix(outputs, problem.n_outputs)
    except ValueError as error:
        raise SpecError(f"model.kind: {kind}: {error}.") from None


def _check_penalty(
    experiment: Experiment, setting: Setting, module: nn.Module, names: Sequence[str]
) -> None:
    """Tries a user's regularizer on the parameters that it is for, and whether there are any."""
    if setting.optimizer == EXACT:
        make_convex_penalty(experiment, setting, tuple(names), columns=1)
    penalty = make_penalty(experiment, setting)
    if penalty.recurrent:
        recurrent_weights(module, names)
    if setting.regularizer in ("spectral", "orthogonal"):
        _check_matrices(setting.regularizer, module, names)
    if not setting.regularizer.startswith("python:"):
        return
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    try:
        if penalty.smooth:
            penalty.value(parameters, names)
        for name in names:
            step = torch.ones_like(parameters[name])
            step = (
                torch.ones((), dtype=step.dtype)
                if setting.optimizer.endswith("sgd") or setting.optimizer == EXACT
                else step
            )
            penalty.prox(name, parameters[name], step)
    except SweepError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(f"regularizer: {setting.regularizer}: {describe(error)}.") from error


def _check_matrices(regularizer: str, module: nn.Module, names: Sequence[str]) -> None:
    shapes = {name: p.ndim for name, p in module.named_parameters()}
    if not any(shapes[name] >= 2 for name in names):
        matrices = [name for name, axes in shapes.items() if axes >= 2]
        raise SpecError(
            f"regularizer {regularizer} is for matrices, and penalize selects none. "
            f"Matrices: {', '.join(matrices) or 'none'}."
        )


def _check_size(experiment: Experiment, module: nn.Module) -> None:
    """Refuses a model that no training step fits: parameters, gradient, and two moments."""
    needed = 4 * parameter_count(module) * experiment.dtype.itemsize
    machine = machine_bytes(experiment.device)
    if needed > machine:
        raise SpecError(
            f"model: {parameter_count(module):,} parameters need {needed / 2**30:,.0f} GiB to "
            f"train, this machine has {machine / 2**30:,.0f}. Give smaller widths."
        )


def example_params(spec: StudySpec) -> list[dict[str, Any]]:
    """Parameters as the database holds them: every combination of the model's and regularizer's
    choices, ends of ranges for the rest, at most `MOST_MODELS` of them.
    """
    options: dict[str, list[Any]] = {}
    model_keys = {*type(spec.model).model_fields, *(spec.model.model_extra or {})}
    for name, knob in spec.space().items():
        key = name.rsplit(".", 1)[-1]
        if isinstance(knob, Choices):
            encoded = [encode_choice(choice) for choice in knob.choices]
            varies = name == "regularizer" or key in model_keys
            options[name] = encoded if varies else encoded[:1]
        else:
            options[name] = [knob.low, knob.high] if key in model_keys else [knob.low]
    combinations = itertools.islice(itertools.product(*options.values()), MOST_MODELS)
    return [dict(zip(options, values, strict=True)) for values in combinations]
