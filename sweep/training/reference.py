"""The reference engine: one model at a time, plain nn.Module and torch.optim.

It is the truth that the batched engine must equal, the engine for modules that cannot be
batched, and the one that `sweep replay` uses.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sweep.errors import SweepError
from sweep.problem.dropout import KeyedDropout, dropout_key
from sweep.problem.losses import loss_per_sample
from sweep.problem.randomness import Stream, derive_seed, seeded
from sweep.problem.scaling import ScaledRows
from sweep.spec.exact import EXACT
from sweep.training import through_time
from sweep.training.clipping import clip_in_place
from sweep.training.convex_member import ConvexMembers
from sweep.training.device import moved
from sweep.training.diagnosis import diagnose
from sweep.training.divergence import (
    CODES,
    Reason,
    gradient_size,
    new_watch,
    observe,
    tensor_sizes,
)
from sweep.training.experiment import Experiment
from sweep.training.fista import solve
from sweep.training.member import (
    Done,
    Epoch,
    Event,
    Failure,
    Member,
    Outcome,
    learning_rate_at,
    make_plan,
)
from sweep.training.optimizers import make_torch_optimizer, proximal_step, trainable
from sweep.training.penalty import Penalty, make_penalty
from sweep.training.scoring import ScoreUndefined, judge, stopping_loss

EVALUATION_ROWS = 4096
SLICE_SECONDS = 0.1
"""Training pauses at least this often, so that whoever asked for it stays responsive."""


class ReferenceEngine:
    """Trains members one after the other, an epoch at a time.

    The folds of the earliest trial take turns, so that its mean score after each epoch is known
    early.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.convex = ConvexMembers(experiment)
        self._runs: dict[tuple[int, int], Run] = {}
        self.ended = 0
        self.steps = 0
        """Updates of members so far."""

    @property
    def pending(self) -> int:
        return len(self._runs)

    @property
    def turn(self) -> tuple[int, int]:
        """The member that `train` would train now."""
        return min(self._runs, key=lambda name: (name[0], self._runs[name].epochs_done, name[1]))

    @property
    def trained(self) -> float:
        """How many members, those under way by the part of their steps that is done."""
        return self.ended + sum(run.part_done for run in self._runs.values())

    def add(self, member: Member) -> None:
        self._runs[member.name] = Run(self.experiment, member, self.convex)

    def expect(self, members: int) -> None:
        """About so many members more are to come; here it changes nothing."""

    def describe(self) -> str:
        """How members train, in words."""
        return "reference, one model at a time"

    def limit(self, name: tuple[int, int], steps: int) -> None:
        """The member ends, `stopped`, once it has tried `steps` updates."""
        if name in self._runs:
            self._runs[name].limit = steps

    def remove(self, name: tuple[int, int]) -> None:
        self._runs.pop(name, None)

    def advance(self) -> list[Event]:
        """Trains one member to the end of its epoch, or for `SLICE_SECONDS`."""
        event = self.train()[1] if self._runs else None
        return [] if event is None else [event]

    def train(self) -> tuple[int, Event | None]:
        """As `advance`; returns the member's step beside what came of it."""
        name = self.turn
        run = self._runs[name]
        before = run.step
        event = run.advance()
        self.steps += run.step - before
        if isinstance(event, Done):
            del self._runs[name]
            self.ended += 1
        return run.step, event

    def close(self, finish: bool = False) -> None:
        """Nothing more will be trained."""


class Run:
    """One member in training."""

    def __init__(self, experiment: Experiment, member: Member, convex: ConvexMembers) -> None:
        self.experiment, self.member, self.convex = experiment, member, convex
        self.limit: int | None = None
        self.epochs_done = 0
        self.epoch = 0
        self.step = 0
        self.steps = 0
        self._until = 0.0
        exact = member.setting.optimizer == EXACT
        self._events: Iterator[Event | None] = self._solve() if exact else self._train()

    @property
    def part_done(self) -> float:
        return self.step / self.steps if self.steps else 0.0

    def advance(self) -> Event | None:
        """Trains to the end of the epoch, or for a moment (None); an exception of the user's
        model ends the member.
        """
        self._until = time.monotonic() + SLICE_SECONDS
        try:
            return next(self._events)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            failure = error_failure(error, self.member, self.epoch, self.step)
            return Done(self.member, Outcome(failure=failure))

    def _train(self) -> Iterator[Event | None]:
        experiment, member = self.experiment, self.member
        spec, problem, setting = experiment.spec, experiment.problem, member.setting
        fold = member.fold
        module = experiment.build_model(setting, fold)
        interact = experiment.traits(setting, module).rows_interact
        module.to(experiment.device)
        plan = make_plan(problem, spec, member, interact)
        self.steps = plan.steps
        names = experiment.penalized(module)
        penalty: Penalty = moved(make_penalty(experiment, setting), experiment.device)
        optimizer = make_torch_optimizer(module, setting, names)
        parameters = trainable(module)
        dropouts = [m for m in module.modules() if isinstance(m, KeyedDropout)]
        x, y = experiment.placed.x_of(fold), experiment.placed.y_of(fold)
        weights: Tensor | None = moved(experiment.row_weights[fold], experiment.device)
        with torch.no_grad():
            watch = new_watch(tensor_sizes(parameters))
        recurrent = through_time.recurrent_weights(module, names) if penalty.recurrent else []
        norms: list[float] = []
        best: tuple[float, int, dict[str, Tensor]] | None = None

        for epoch in range(plan.epochs):
            self.epoch = epoch
            order = torch.from_numpy(plan.rows_of(spec.seed, fold, epoch)).to(experiment.device)
            module.train()
            for i in range(plan.steps_per_epoch):
                if self.limit is not None and self.step >= self.limit:
                    yield Done(member, Outcome(stopped=True))
                    return
                rows = order[i * plan.batch : (i + 1) * plan.batch]
                for dropout in dropouts:
                    dropout.key.fill_(dropout_key(spec.seed, fold, self.step))
                # What a user's module draws by itself is at least the same in every replay.
                with seeded(derive_seed(spec.seed, fold, self.step, Stream.STEP)):
                    nudges = through_time.make_nudges(module, x[rows], penalty)
                    for nudge in nudges:
                        nudge.requires_grad_()
                    raw, slopes = through_time.call(module, None, x[rows], nudges)
                outputs = as_matrix(raw, problem.n_outputs)
                losses = loss_per_sample(problem.kind, outputs, y[rows])
                loss = (losses if weights is None else losses * weights[rows]).mean()
                if penalty.smooth:
                    loss = loss + penalty.value(parameters, names)
                if penalty.recurrent:
                    d = torch.autograd.grad(loss, nudges, retain_graph=True)
                    loss = loss + through_time.value(penalty, parameters, recurrent, d, slopes)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                gradient: dict[str, Tensor] = {}
                for name, p in parameters.items():
                    if p.grad is None:
                        # torch.optim would leave out what no output depends on, decay included.
                        p.grad = torch.zeros_like(p)
                    gradient[name] = p.grad
                with torch.no_grad():
                    norm, peaks = gradient_size(gradient)
                clip_in_place(parameters.values(), setting, norms)
                rate = float(learning_rate_at(self.step, setting, plan))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                if penalty.proximal:
                    proximal_step(optimizer, module, setting, names, penalty.prox)
                with torch.no_grad():
                    sizes = tensor_sizes(parameters)
                    watch = observe(watch, loss.detach(), norm, peaks, sizes, spec.divergence)
                if watch.code:
                    failure = diagnose(watch, list(parameters), member, plan)
                    yield Done(member, Outcome(failure=failure))
                    return
                self.step += 1
                if time.monotonic() >= self._until:
                    yield None
            self.epochs_done = epoch + 1
            if self.limit is not None and self.step >= self.limit:
                # A sibling fold diverged before this epoch's score could matter.
                yield Done(member, Outcome(stopped=True))
                return
            outputs = predict(module, x, plan.test, problem.n_outputs)
            score = judge(experiment, experiment.score, outputs, fold, plan.test)
            if not math.isfinite(score):
                code = torch.tensor(CODES.index(Reason.NONFINITE_SCORE) + 1)
                failure = diagnose(watch._replace(code=code), list(parameters), member, plan)
                yield Done(member, Outcome(failure=failure))
                return
            stop = False
            if plan.held_out is not None and setting.early_stopping is not None:
                held = predict(module, x, plan.held_out, problem.n_outputs)
                value = stopping_loss(experiment, held, fold, plan.held_out)
                if best is None or value < best[0] - setting.early_stopping.min_delta:
                    best = (value, epoch, copy.deepcopy(module.state_dict()))
                stop = epoch - best[1] >= setting.early_stopping.patience
            if epoch + 1 == plan.epochs or stop:
                break
            yield Epoch(member, epoch, score)
        yield Epoch(member, epoch, score)
        if self.limit is not None and self.step >= self.limit:
            yield Done(member, Outcome(stopped=True))
            return
        if best is not None:
            module.load_state_dict(best[2])
        yield Done(member, self._outcome(module, names, plan.train))

    def _solve(self) -> Iterator[Event | None]:
        """The exact solver's steps, then one report: the score of the optimum."""
        task = self.convex.make(self.member)
        for found in solve(task):
            self.step = task.effort.iterations
            if self.limit is not None and self.step >= self.limit:
                yield Done(self.member, Outcome(stopped=True))
                return
            if isinstance(found, Failure):
                yield Done(self.member, Outcome(failure=found))
                return
            if found is None:
                yield None
                continue
            module = self.experiment.build_model(self.member.setting, self.member.fold)
            module.to(self.experiment.device)
            weight, bias = task.problem.design.model_weights(found)
            with torch.no_grad():
                named = dict(module.named_parameters())
                named["linear.weight"].copy_(weight)
                if bias is not None:
                    named["linear.bias"].copy_(bias)
            train = self.experiment.problem.folds[self.member.fold].train
            outcome = self._outcome(module, task.names, train)
            assert outcome.score is not None
            yield Epoch(self.member, 0, outcome.score)
            yield Done(self.member, outcome)

    def _outcome(
        self, module: nn.Module, names: Sequence[str], train: NDArray[np.int64]
    ) -> Outcome:
        """What a trained module comes to, on its fold's test and training rows."""
        experiment, problem, fold = self.experiment, self.experiment.problem, self.member.fold
        x, test = experiment.placed.x_of(fold), problem.folds[fold].test
        parameters = trainable(module)
        outputs = predict(module, x, test, problem.n_outputs)
        train_outputs = predict(module, x, train, problem.n_outputs)
        return Outcome(
            score=judge(experiment, experiment.score, outputs, fold, test),
            train_score=judge(experiment, experiment.score, train_outputs, fold, train),
            nonzero=sum(int(torch.count_nonzero(parameters[name])) for name in names),
            more_scores={
                score.name: judge(experiment, score, outputs, fold, test)
                for score in experiment.more_scores
            },
        )


def as_matrix(outputs: Tensor, n_outputs: int) -> Tensor:
    """(B, n_outputs); a module with one output may leave the last axis out."""
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model returned a {type(outputs).__name__}, expected a tensor (batch, {n_outputs})"
        )
    if n_outputs == 1 and outputs.ndim == 1:
        return outputs.unsqueeze(-1)
    if outputs.ndim != 2 or outputs.shape[-1] != n_outputs:
        raise ValueError(
            f"the model returned shape {tuple(outputs.shape)}, expected (batch, {n_outputs})"
        )
    return outputs


@torch.no_grad()
def predict(module: nn.Module, x: Tensor | ScaledRows, rows: object, n_outputs: int) -> Tensor:
    """Outputs (n, n_outputs) on the given rows, in evaluation mode."""
    module.eval()
    index = torch.as_tensor(rows).to(x.device)
    chunks = [as_matrix(module(x[part]), n_outputs) for part in torch.split(index, EVALUATION_ROWS)]
    return torch.cat(chunks)


def error_failure(error: BaseException, member: Member, epoch: int, step: int) -> Failure:
    """`kind: error`, with the exception's type and message."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, ScoreUndefined):
        reason, message = "undefined_score", text
    elif isinstance(error, SweepError):
        reason, message = "refused", text
    else:
        reason = type(error).__name__
        message = f"{reason}: {text}" if text else reason
    return Failure("error", reason, member.fold, epoch, step, message)
