"""One step of all lanes: a model's step, mapped over the slots, eager or compiled.

The step is a function of tensors only. It takes its batch out of the data, and goes through
forward, penalty, backward, clipping, update, proximal step and divergence checks.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_map

from sweep.problem.dropout import KeyedDropout, dropout_key
from sweep.problem.losses import loss_per_sample
from sweep.spec import Choices, Setting
from sweep.training.batches import FoldTable
from sweep.training.divergence import Watch, gradient_size, observe
from sweep.training.experiment import Experiment
from sweep.training.optimizers import Moments, Numbers, clip, update
from sweep.training.penalty import Penalty, possible_penalties
from sweep.training.reference import as_matrix

Tensors = dict[str, Tensor]


class State(NamedTuple):
    """All that a step reads and changes, stacked: the first axis is the slot."""

    parameters: Tensors
    buffers: Tensors
    moments: Moments
    watch: Watch
    numbers: Numbers
    penalty: Penalty


class StepInputs(NamedTuple):
    """What a step is given for M slots. Of a batch's rows, those beyond `n_rows` are padding."""

    folds: Int[Tensor, " M"]
    rows: Int[Tensor, "M B"]
    n_rows: Int[Tensor, " M"]
    step: Int[Tensor, " M"]
    learning_rate: Float[Tensor, " M"]


class LaneStep:
    """The step of one program. Holds a module of its own, so that two may run side by side."""

    def __init__(
        self,
        experiment: Experiment,
        module: nn.Module,
        penalized: tuple[str, ...],
        setting: Setting,
    ) -> None:
        spec, regularizer = experiment.spec, setting.regularizer
        self.module = copy.deepcopy(module).train()
        self.penalized = penalized
        self.optimizer, self.nesterov = setting.optimizer, setting.nesterov
        self.kind, self.n_outputs = experiment.problem.kind, experiment.problem.n_outputs
        self.seed, self.rules = spec.seed, spec.divergence
        self.clips_norm = _may_be_set(spec.train.clip_norm)
        self.clips_value = _may_be_set(spec.train.clip_value)
        if regularizer.startswith("python:"):
            regularizers = [regularizer]
        else:
            listed: Any = spec.regularizer
            listed = listed.choices if isinstance(listed, Choices) else [listed]
            regularizers = [name for name in listed if not name.startswith("python:")]
        self.template = possible_penalties(experiment, regularizers, setting.optimizer)
        self.dropout_keys = [
            f"{name}.key" for name, m in module.named_modules() if isinstance(m, KeyedDropout)
        ]

    def __call__(self, state: State, inputs: StepInputs, table: FoldTable) -> State:
        x, y, weights = table.take(inputs.folds, inputs.rows)
        keys = dropout_key(self.seed, inputs.folds, inputs.step) if self.dropout_keys else None
        arguments = (state, x, y, weights, inputs.n_rows, inputs.learning_rate, keys)
        dims = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, arguments)
        parameters, buffers, moments, watch = vmap(self._one, in_dims=dims)(*arguments)
        return State(parameters, buffers, moments, watch, state.numbers, state.penalty)

    def _one(
        self,
        state: State,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None,
        count: Tensor,
        learning_rate: Tensor,
        key: Tensor | None,
    ) -> tuple[Tensors, Tensors, Moments, Watch]:
        """One step of one model."""
        valid = torch.arange(x.shape[0]) < count

        def objective(parameters: Tensors) -> tuple[Tensor, Tensors]:
            # Batch normalisation writes its running statistics into these copies.
            buffers = {name: b.clone() for name, b in state.buffers.items()}
            if key is not None:
                for name in self.dropout_keys:
                    buffers[name] = key
            outputs = functional_call(self.module, {**parameters, **buffers}, (x,))
            losses = loss_per_sample(self.kind, as_matrix(outputs, self.n_outputs), y)
            if weights is not None:
                losses = losses * weights
            loss = torch.where(valid, losses, 0.0).sum() / count
            if self.template.smooth:
                loss = loss + state.penalty.value(parameters, self.penalized)
            return loss, buffers

        gradient, (loss, buffers) = grad_and_value(objective, has_aux=True)(state.parameters)
        norm, peaks = gradient_size(gradient)
        clipped = clip(
            gradient, norm, state.numbers, by_value=self.clips_value, by_norm=self.clips_norm
        )
        parameters, moments = update(
            self.optimizer,
            self.nesterov,
            state.parameters,
            clipped,
            state.moments,
            learning_rate,
            state.numbers,
            self.penalized,
            state.penalty.prox if self.template.proximal else None,
        )
        sound = torch.stack([torch.isfinite(p).all() for p in parameters.values()]).all()
        watch = observe(state.watch, loss, norm, peaks, sound, self.rules)
        return parameters, buffers, moments, watch


def _may_be_set(knob: Any) -> bool:
    if isinstance(knob, Choices):
        return any(choice is not None for choice in knob.choices)
    return knob is not None
