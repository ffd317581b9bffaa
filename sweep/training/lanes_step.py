"""One step of all lanes: a model's step, mapped over the slots, eager or compiled.

The step is a function of tensors only. It takes its batch out of the data, and goes through
forward, penalty, backward, clipping, update, proximal step and divergence checks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from sweep.problem.dropout import KeyedDropout, dropout_key
from sweep.problem.losses import loss_per_sample
from sweep.spec import Choices, Setting
from sweep.training import through_time
from sweep.training.batches import FoldTable
from sweep.training.clipping import clip, possible_clips
from sweep.training.differentiation import value_and_gradient
from sweep.training.divergence import Watch, gradient_size, observe, tensor_sizes
from sweep.training.experiment import Experiment
from sweep.training.lanes_convolution import WrittenOut
from sweep.training.optimizers import Moments, Numbers, rule_of, update
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
    """The step of one program. Holds a module of its own, which a call lends the lanes' weights."""

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
        self.rule, self.clips = rule_of(setting), possible_clips(spec.train)
        self.kind, self.n_outputs = experiment.problem.kind, experiment.problem.n_outputs
        self.seed, self.rules = spec.seed, spec.divergence
        if regularizer.startswith("python:"):
            regularizers = [regularizer]
        else:
            listed: Any = spec.regularizer
            listed = listed.choices if isinstance(listed, Choices) else [listed]
            regularizers = [name for name in listed if not name.startswith("python:")]
        self.template = possible_penalties(experiment, regularizers, self.rule.decoupled)
        if self.template.recurrent:
            self.recurrent = through_time.recurrent_weights(module, penalized)
        self.dropout_keys = [
            f"{name}.key" for name, m in module.named_modules() if isinstance(m, KeyedDropout)
        ]

    def __call__(self, state: State, inputs: StepInputs, table: FoldTable) -> State:
        x, y, weights = table.take(inputs.folds, inputs.rows)
        keys = dropout_key(self.seed, inputs.folds, inputs.step) if self.dropout_keys else None
        arguments = (state, x, y, weights, inputs.n_rows, inputs.learning_rate, keys)
        parameters, buffers, moments, watch = _mapped(self._one, *arguments)
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
        valid = torch.arange(x.shape[0], device=x.device) < count

        nudges = through_time.make_nudges(self.module, x, self.template)

        def objective(
            at: tuple[Tensors, tuple[Tensor, ...]],
        ) -> tuple[Tensor, tuple[Tensors, list[Tensor]]]:
            parameters, nudges = at
            # Batch normalisation writes its running statistics into these copies.
            buffers = {name: b.clone() for name, b in state.buffers.items()}
            if key is not None:
                for name in self.dropout_keys:
                    buffers[name] = key
            tensors = {**parameters, **buffers}
            # It looks at every call of torch's: only where a module may convolve.
            with WrittenOut():
                outputs, slopes = through_time.call(self.module, tensors, x, nudges)
            losses = loss_per_sample(self.kind, as_matrix(outputs, self.n_outputs), y)
            if weights is not None:
                losses = losses * weights
            loss = torch.where(valid, losses, 0.0).sum() / count
            if self.template.smooth:
                loss = loss + state.penalty.value(parameters, self.penalized)
            return loss, (buffers, slopes)

        # The gradient of all losses' sum, taken outside of the mapping, is the same; but its
        # products come transposed, and the compiled step takes twice as long.
        loss, (buffers, slopes), (gradient, d) = value_and_gradient(
            objective, (state.parameters, nudges)
        )
        if self.template.recurrent:
            loss, gradient = through_time.add(
                state.penalty, state.parameters, self.recurrent, d, slopes, loss, gradient
            )
        norm, peaks = gradient_size(gradient)
        clipped, norms = clip(gradient, norm, state.moments.norms, state.numbers.clip, self.clips)
        parameters, moments = update(
            self.rule,
            state.parameters,
            clipped,
            state.moments._replace(norms=norms),
            learning_rate,
            state.numbers,
            self.penalized,
            state.penalty.prox if self.template.proximal else None,
        )
        watch = observe(state.watch, loss, norm, peaks, tensor_sizes(parameters), self.rules)
        return parameters, buffers, moments, watch


def _mapped(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function of one lane, of all: every tensor has a lane's part along its first axis."""
    leaves, structure = tree_flatten(arguments)

    def flat(*parts: Tensor) -> Any:
        return function(*tree_unflatten(refilled(leaves, parts), structure))

    # Of nested arguments it would look up the axis of each leaf by itself, at every step.
    return vmap(flat)(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))


def refilled(leaves: Sequence[Any], given: Sequence[Tensor]) -> list[Any]:
    """The leaves, with the given tensors where they have tensors."""
    following: Iterator[Tensor] = iter(given)
    return [next(following) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
