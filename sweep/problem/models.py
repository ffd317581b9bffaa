"""From a study file's `model:` section to an nn.Module, and what training must know about it."""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sweep.errors import SpecError, SweepError
from sweep.problem.dropout import replace_dropout
from sweep.problem.initialization import initialize, weights_and_biases
from sweep.problem.networks import CNN, MLP, Linear, Recurrent
from sweep.problem.plugins import describe, load_object
from sweep.problem.randomness import Stream, derive_seed, seeded
from sweep.spec.models import BUILT_IN


def build_model(
    kind: str,
    knobs: Mapping[str, Any],
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    seed: int,
    fold: int,
    dtype: torch.dtype,
    directory: Path,
) -> nn.Module:
    """The model of one member: x (B, *input_shape) -> outputs (B, n_outputs), of this dtype.

    How it starts follows from (seed, fold) and the architecture alone, not from its dropout rate
    or dtype; the global random state is left as it was. A user's `python:module:name` is called
    with those of input_shape, n_features and n_inputs (both: the values in a row), n_outputs that
    its signature has (all, if it has **kwargs and none of them), and with its knobs.

    Raises SpecError if the network does not fit the data or its callable does not fit the study
    file; SweepError if the callable itself fails.
    """
    with seeded(derive_seed(seed, fold, Stream.INITIALIZATION)):
        if kind in BUILT_IN:
            module = _built_in(kind, dict(knobs), input_shape, n_outputs)
        else:
            module = _custom(kind, dict(knobs), input_shape, n_outputs, directory)
            replace_dropout(module)
            if any(is_lazy(parameter) for parameter in module.parameters()):
                with torch.no_grad():
                    module.eval()(torch.zeros(2, *input_shape))
                module.train()
    return module.to(dtype)


def _built_in(
    kind: str, knobs: dict[str, Any], input_shape: tuple[int, ...], n_outputs: int
) -> nn.Module:
    init = knobs.pop("init", "default")
    for key in ("hidden", "channels"):
        if key in knobs and kind in ("mlp", "cnn") and (kind, key) != ("cnn", "hidden"):
            knobs[key] = _as_list(knobs[key])
    n_inputs = math.prod(input_shape)
    module: nn.Module
    if kind == "linear":
        module = Linear(n_inputs, n_outputs, **knobs)
        # As scikit-learn's solvers start; the problem is convex.
        init = "zeros" if init == "default" else init
    elif kind == "mlp":
        module = MLP(n_inputs, n_outputs, **knobs)
    elif kind == "cnn":
        module = CNN(input_shape, n_outputs, **knobs)
    else:
        module = Recurrent(kind, input_shape, n_outputs, **knobs)
    initialize(module, init)
    return module


def _as_list(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _custom(
    kind: str,
    knobs: dict[str, Any],
    input_shape: tuple[int, ...],
    n_outputs: int,
    directory: Path,
) -> nn.Module:
    make = load_object(kind, directory)
    if not callable(make):
        raise SpecError(
            f"model.kind: {kind} is of type {type(make).__name__}, which cannot be called."
        )
    try:
        signature = inspect.signature(make)
    except ValueError:
        raise SpecError(f"model.kind: {kind} has no signature to call it by.") from None
    taken = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    n_inputs = math.prod(input_shape)
    offered: dict[str, Any] = {
        "input_shape": input_shape,
        "n_features": n_inputs,
        "n_inputs": n_inputs,
        "n_outputs": n_outputs,
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if open_ended and not taken & offered.keys():
        taken |= offered.keys()
    given = {name: value for name, value in offered.items() if name in taken} | knobs
    unknown = [] if open_ended else [name for name in knobs if name not in taken]
    if unknown:
        known = [name for name in signature.parameters if name not in offered]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SpecError(
            f"model.{unknown[0]}: {kind} takes no such argument.{hint} "
            f"It takes: {', '.join(known) or 'none'}."
        )
    try:
        signature.bind(**given)
    except TypeError as error:
        raise SpecError(
            f"model: {kind} cannot be called, {error}. Offered are {', '.join(offered)} "
            "and the keys of `model`."
        ) from None
    try:
        module = make(**given)
    except SweepError:
        raise
    except (Exception, SystemExit) as error:
        raise SweepError(f"model: {kind} raised {describe(error)}") from error
    if not isinstance(module, nn.Module):
        raise SpecError(
            f"model.kind: {kind} returned an object of type {type(module).__name__}; "
            "it must return a torch.nn.Module."
        )
    return module


def structure_key(kind: str, knobs: Mapping[str, Any]) -> Hashable:
    """Trials with equal keys differ only in values held in parameters and buffers.

    So their models can be stacked. For built-in kinds the start is left out and of dropout only
    counts whether there is any (a rate is a buffer); for a user's model every knob counts.
    """
    key = dict(knobs)
    if kind in BUILT_IN:
        key.pop("init", None)
        if "dropout" in key:
            key["dropout"] = key["dropout"] > 0
        if kind == "mlp" and "hidden" in key:
            key["hidden"] = _as_list(key["hidden"])
        if "channels" in key:
            key["channels"] = _as_list(key["channels"])
    return kind, json.dumps(key, sort_keys=True, default=repr)


def parameter_count(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def rows_interact(module: nn.Module) -> bool:
    """Whether a row's output depends on the other rows of its training batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def penalized(
    module: nn.Module, *, penalize_bias: bool = False, patterns: Sequence[str] = ("*",)
) -> list[str]:
    """The names of the parameters that a regularizer acts on, in the module's order.

    Weights whose name matches one of the patterns (`fnmatch`: hidden.*, *weight_hh*); with
    `penalize_bias` also biases and the parameters of normalisation modules. Frozen parameters
    never. Raises SpecError for a pattern that selects nothing.
    """
    candidates = [
        name
        for name, parameter, is_weight in weights_and_biases(module)
        if parameter.requires_grad and (is_weight or penalize_bias)
    ]
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in candidates):
            everything = [name for name, _ in module.named_parameters()]
            why = "no parameter"
            if any(fnmatchcase(name, pattern) for name in everything):
                why = "only biases, normalisation or frozen parameters"
            raise SpecError(
                f"penalize: {pattern!r} matches {why}. "
                f"Parameters that can be penalized: {', '.join(candidates) or 'none'}."
            )
    return [name for name in candidates if any(fnmatchcase(name, p) for p in patterns)]
