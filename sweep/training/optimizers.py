"""The update of one model: clipping, the optimizer's step, and the proximal step after it.

Written twice on purpose. `update` is a pure function on tensors that a batch of models can be
mapped over; `make_torch_optimizer` and `proximal_step` are the same update on torch.optim's own
classes. Tests hold the two together.

The proximal step. A penalty R without a gradient at 0 is not put into the gradient; after the
optimizer has moved the weights to u, w = prox_{c R}(u), where c is the step that the optimizer
takes along a *steady* gradient:

    sgd (heavy ball)     c = lr
    sgd with Nesterov    c = lr * (1 + momentum)
    rmsprop              c = lr / (sqrt(v) + eps), a number per coordinate
    adam, adamw          c = lr / (sqrt(v_hat) + eps), a number per coordinate

so that at a fixed point w = prox_{c R}(w - c g), which is the optimum of loss + R for every c.
The subgradient s = (u - w) / c that the proximal step used joins the momentum buffer as any
gradient does (buffer += s; rmsprop's buffer is preconditioned: buffer += (u - w) / lr). For
constant lr this is heavy ball on the iterates, u = w - lr*g + momentum*(w - w_prev). Without it
the result would solve for (1 - momentum) * lambda. Adam's first moment averages instead of
summing, so it needs no correction (Yun, Lozano and Yang 2021, arXiv 2006.05080).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sweep.spec import Setting

RMSPROP_ALPHA, EPS = 0.99, 1e-8
ADAM_BETAS = (0.9, 0.999)

Tensors = dict[str, Tensor]
Prox = Callable[[str, Tensor, Tensor], Tensor]
"""prox(parameter name, u, step) -> w"""


class Numbers(NamedTuple):
    """The numbers of one trial's update. Batched: the same, holding lanes."""

    momentum: Float[Tensor, ""]
    weight_decay: Float[Tensor, ""]
    penalty_decay: Float[Tensor, ""]
    clip_norm: Float[Tensor, ""]
    clip_value: Float[Tensor, ""]


class Moments(NamedTuple):
    """What an optimizer remembers: per parameter, and how many updates it has made."""

    step: Int[Tensor, ""]
    first: Tensors
    second: Tensors


def numbers(setting: Setting, dtype: torch.dtype) -> Numbers:
    """A setting's numbers as tensors; no clipping is clipping at infinity."""

    def scalar(value: float | None) -> Tensor:
        return torch.tensor(torch.inf if value is None else value, dtype=dtype)

    return Numbers(
        momentum=scalar(setting.momentum),
        weight_decay=scalar(setting.weight_decay),
        penalty_decay=scalar(decoupled_decay(setting)),
        clip_norm=scalar(setting.clip_norm),
        clip_value=scalar(setting.clip_value),
    )


def decoupled_decay(setting: Setting) -> float:
    """Under adamw, `l2` is decoupled weight decay with the rate lambda, on penalized tensors."""
    return setting.lam if setting.optimizer == "adamw" and setting.regularizer == "l2" else 0.0


def new_moments(parameters: Mapping[str, Tensor], optimizer: str) -> Moments:
    """All zeros; only what this optimizer uses."""
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {} if optimizer == "sgd" else {n: torch.zeros_like(p) for n, p in first.items()}
    return Moments(torch.zeros((), dtype=torch.int64), first, second)


def clip(
    gradient: Tensors, norm: Float[Tensor, ""], numbers: Numbers, *, by_value: bool, by_norm: bool
) -> Tensors:
    """Each entry to [-clip_value, clip_value], then the whole to norm clip_norm, as torch does."""
    if by_value:
        bound = numbers.clip_value
        gradient = {n: torch.minimum(torch.maximum(g, -bound), bound) for n, g in gradient.items()}
        if by_norm:
            norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
    if by_norm:
        factor = (numbers.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        gradient = {name: g * factor for name, g in gradient.items()}
    return gradient


def update(
    optimizer: str,
    nesterov: bool,
    parameters: Tensors,
    gradient: Tensors,
    moments: Moments,
    learning_rate: Float[Tensor, ""],
    numbers: Numbers,
    penalized: Sequence[str],
    prox: Prox | None,
) -> tuple[Tensors, Moments]:
    """(parameters, moments) after one step along an already clipped gradient."""
    step = moments.step + 1
    lr, momentum = learning_rate, numbers.momentum
    new: Tensors = {}
    first: Tensors = {}
    second: Tensors = {}
    adam = optimizer in ("adam", "adamw")
    if adam:
        # 1 - beta^t without the cancellation that float32 would suffer at small t.
        t = step.to(lr.dtype)
        correction1 = -torch.expm1(t * math.log(ADAM_BETAS[0]))
        correction2 = (-torch.expm1(t * math.log(ADAM_BETAS[1]))).sqrt()
    for name, w in parameters.items():
        g = gradient[name]
        if optimizer == "adamw":
            decay = numbers.weight_decay
            if name in penalized:
                decay = decay + numbers.penalty_decay
            w = w * (1 - lr * decay)
        else:
            g = g + numbers.weight_decay * w
        if adam:
            m = torch.lerp(moments.first[name], g, 1 - ADAM_BETAS[0])
            v = ADAM_BETAS[1] * moments.second[name] + (1 - ADAM_BETAS[1]) * g * g
            metric = lr / (v.sqrt() / correction2 + EPS)
            u = w - metric / correction1 * m
            c, first[name], second[name] = metric, m, v
        elif optimizer == "rmsprop":
            v = RMSPROP_ALPHA * moments.second[name] + (1 - RMSPROP_ALPHA) * g * g
            scale = v.sqrt() + EPS
            buffer = momentum * moments.first[name] + g / scale
            u = w - lr * buffer
            c, first[name], second[name] = lr / scale, buffer, v
        else:
            buffer = momentum * moments.first[name] + g
            u = w - lr * (g + momentum * buffer if nesterov else buffer)
            c, first[name] = (lr * (1 + momentum) if nesterov else lr), buffer
        if prox is not None and name in penalized:
            w = prox(name, u, c)
            if not adam:
                first[name] = first[name] + (u - w) / (lr if optimizer == "rmsprop" else c)
            u = w
        new[name] = u
    return new, Moments(step, first, second)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def make_torch_optimizer(
    module: nn.Module, setting: Setting, penalized: Sequence[str]
) -> torch.optim.Optimizer:
    """The plain torch.optim optimizer of a setting; penalized parameters are its first group."""
    named = trainable(module)
    inside = [named[name] for name in penalized]
    outside = [p for name, p in named.items() if name not in penalized]
    rate, decay = setting.learning_rate, setting.weight_decay
    groups = [
        {"params": inside, "weight_decay": decay + decoupled_decay(setting)},
        {"params": outside, "weight_decay": decay},
    ]
    groups = [group for group in groups if group["params"]]
    match setting.optimizer:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=rate, momentum=setting.momentum, nesterov=setting.nesterov
            )
        case "rmsprop":
            return torch.optim.RMSprop(
                groups, lr=rate, alpha=RMSPROP_ALPHA, eps=EPS, momentum=setting.momentum
            )
        case "adam":
            return torch.optim.Adam(groups, lr=rate, betas=ADAM_BETAS, eps=EPS)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=ADAM_BETAS, eps=EPS)
        case unknown:
            raise AssertionError(unknown)


@torch.no_grad()
def proximal_step(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    setting: Setting,
    penalized: Sequence[str],
    prox: Prox,
) -> None:
    """The proximal step after `optimizer.step()`, in place."""
    named = dict(module.named_parameters())
    lr = optimizer.param_groups[0]["lr"]
    for name in penalized:
        p, state = named[name], optimizer.state[named[name]]
        u = p.clone()
        if setting.optimizer in ("adam", "adamw"):
            correction = 1 - ADAM_BETAS[1] ** int(state["step"])
            corrected = state["exp_avg_sq"].sqrt() / math.sqrt(correction)
            c = lr / (corrected + EPS)
        elif setting.optimizer == "rmsprop":
            c = lr / (state["square_avg"].sqrt() + EPS)
        else:
            factor = 1 + setting.momentum if setting.nesterov else 1.0
            c = torch.tensor(lr * factor, dtype=p.dtype)
        p.copy_(prox(name, u, c))
        if state.get("momentum_buffer") is not None:
            share = lr if setting.optimizer == "rmsprop" else c
            state["momentum_buffer"].add_((u - p) / share)
