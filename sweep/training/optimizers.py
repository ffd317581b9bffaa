"""The update of one model: the optimizer's step, and the proximal step after it.

Written twice on purpose. `update` is a pure function on tensors that a batch of models can be
mapped over; `make_torch_optimizer` and `proximal_step` are the same update on torch.optim's own
classes. Tests hold the two together.

The proximal step. A penalty R without a gradient at 0 is not put into the gradient; after the
optimizer has moved the weights to u, w = prox_{c R}(u), where c is the step that the optimizer
takes along a *steady* gradient:

    sgd (heavy ball)     c = lr
    sgd with Nesterov    c = lr * (1 + momentum)
    normalized_sgd       c = lr / (||g|| + eps), of the whole gradient
    rmsprop              c = lr / (sqrt(v) + eps), a number per coordinate
    adam, adamw          c = lr / (sqrt(v_hat) + eps), a number per coordinate

so that at a fixed point w = prox_{c R}(w - c g), which is the optimum of loss + R for every c.
The subgradient s = (u - w) / c that the proximal step used joins the momentum buffer as any
gradient does (buffer += s; the buffers of rmsprop and normalized_sgd are preconditioned: buffer
+= (u - w) / lr). For constant lr this is heavy ball on the iterates, u = w - lr*g +
momentum*(w - w_prev). Without it the result would solve for (1 - momentum) * lambda. Adam's first
moment averages instead of summing, so it needs no correction (Yun, Lozano and Yang 2021,
arXiv 2006.05080).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sweep.spec import Setting
from sweep.training.clipping import Bounds, Clips, bounds, new_norms
from sweep.training.divergence import gradient_size

RMSPROP_ALPHA, EPS = 0.99, 1e-8
ADAM_BETAS = (0.9, 0.999)

Tensors = dict[str, Tensor]
Prox = Callable[[str, Tensor, Tensor], Tensor]
"""prox(parameter name, u, step) -> w"""


class Rule(NamedTuple):
    """What of an update is code, not numbers: trials of one rule can share a program."""

    optimizer: str
    nesterov: bool
    decoupled: bool


class Numbers(NamedTuple):
    """The numbers of one trial's update. Batched: the same, holding lanes."""

    momentum: Float[Tensor, ""]
    weight_decay: Float[Tensor, ""]
    penalty_decay: Float[Tensor, ""]
    clip: Bounds


class Moments(NamedTuple):
    """What an update remembers: per parameter, how many it has made, and the gradient's norms."""

    step: Int[Tensor, ""]
    first: Tensors
    second: Tensors
    norms: Tensors


def rule_of(setting: Setting) -> Rule:
    return Rule(setting.optimizer, setting.nesterov, setting.decoupled_weight_decay)


def numbers(setting: Setting, dtype: torch.dtype) -> Numbers:
    """A setting's numbers as tensors; no clipping is clipping at infinity."""

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype)

    return Numbers(
        momentum=scalar(setting.momentum),
        weight_decay=scalar(setting.weight_decay),
        penalty_decay=scalar(decoupled_decay(setting)),
        clip=bounds(setting, dtype),
    )


def decoupled_decay(setting: Setting) -> float:
    """Where decay is decoupled, `l2` is such decay with the rate lambda, on penalized tensors."""
    decoupled = setting.decoupled_weight_decay and setting.regularizer == "l2"
    return setting.lam if decoupled else 0.0


def new_moments(parameters: Mapping[str, Tensor], optimizer: str, clips: Clips) -> Moments:
    """All zeros, and no norms; only what this optimizer and these kinds of clipping use."""
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    single = optimizer in ("sgd", "normalized_sgd")
    second = {} if single else {name: torch.zeros_like(p) for name, p in first.items()}
    dtype = next(iter(first.values())).dtype
    return Moments(torch.zeros((), dtype=torch.int64), first, second, new_norms(clips, dtype))


def update(
    rule: Rule,
    parameters: Tensors,
    gradient: Tensors,
    moments: Moments,
    learning_rate: Float[Tensor, ""],
    numbers: Numbers,
    penalized: Sequence[str],
    prox: Prox | None,
) -> tuple[Tensors, Moments]:
    """(parameters, moments) after one step along an already clipped gradient.

    Decoupled decay, w <- (1 - lr * decay) * w beside the step, is that of AdamW and SGDW as torch
    has it (Loshchilov and Hutter 2019, arXiv 1711.05101); else decay joins the gradient.
    normalized_sgd goes along g / ||g||, g the whole gradient with its decay: without momentum
    every step has the length lr (Hazan, Levy and Shalev-Shwartz 2015, arXiv 1507.02030).
    """
    optimizer, nesterov, decoupled = rule
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
    if not decoupled:
        gradient = {n: g + numbers.weight_decay * parameters[n] for n, g in gradient.items()}
    if optimizer == "normalized_sgd":
        length = gradient_size(gradient)[0] + EPS
    for name, w in parameters.items():
        g = gradient[name]
        if decoupled:
            decay = numbers.weight_decay
            if name in penalized:
                decay = decay + numbers.penalty_decay
            w = w * (1 - lr * decay)
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
        elif optimizer == "normalized_sgd":
            buffer = momentum * moments.first[name] + g / length
            u = w - lr * buffer
            c, first[name] = lr / length, buffer
        else:
            buffer = momentum * moments.first[name] + g
            u = w - lr * (g + momentum * buffer if nesterov else buffer)
            c, first[name] = (lr * (1 + momentum) if nesterov else lr), buffer
        if prox is not None and name in penalized:
            w = prox(name, u, c)
            if not adam:
                # Times its reciprocal: of one number, where a division costs as much as the rest.
                once = (c if optimizer == "sgd" else lr).reciprocal()
                first[name] = first[name] + (u - w) * once
            u = w
        new[name] = u
    return new, Moments(step, first, second, moments.norms)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def make_torch_optimizer(
    module: nn.Module, setting: Setting, penalized: Sequence[str]
) -> torch.optim.Optimizer:
    """The plain torch.optim optimizer of a setting; penalized parameters are its first group.

    What torch.optim has not is done to parameters and gradients before its step: decay that is
    decoupled from sgd or rmsprop, and the gradient divided by its norm.
    """
    named = trainable(module)
    inside = [named[name] for name in penalized]
    outside = [p for name, p in named.items() if name not in penalized]
    rate, decay = setting.learning_rate, setting.weight_decay
    groups = [
        {"params": inside, "weight_decay": decay + decoupled_decay(setting)},
        {"params": outside, "weight_decay": decay},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    match setting.optimizer:
        case "sgd" | "normalized_sgd":
            optimizer = torch.optim.SGD(
                groups, lr=rate, momentum=setting.momentum, nesterov=setting.nesterov
            )
        case "rmsprop":
            optimizer = torch.optim.RMSprop(
                groups, lr=rate, alpha=RMSPROP_ALPHA, eps=EPS, momentum=setting.momentum
            )
        case "adam":
            return torch.optim.Adam(groups, lr=rate, betas=ADAM_BETAS, eps=EPS)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=ADAM_BETAS, eps=EPS)
        case unknown:
            raise AssertionError(unknown)
    if setting.decoupled_weight_decay or setting.optimizer == "normalized_sgd":
        for group in optimizer.param_groups:
            group["own_decay"], group["weight_decay"] = group["weight_decay"], 0.0
        optimizer.register_step_pre_hook(_own_decay(setting.decoupled_weight_decay))
    if setting.optimizer == "normalized_sgd":
        optimizer.register_step_pre_hook(_normalize)
    return optimizer


def _own_decay(decoupled: bool) -> Callable[..., None]:
    @torch.no_grad()
    def decay(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if decoupled:
                    p.mul_(1 - group["lr"] * group["own_decay"])
                else:
                    p.grad.add_(p, alpha=group["own_decay"])

    return decay


@torch.no_grad()
def _normalize(optimizer: torch.optim.Optimizer, *_: object) -> None:
    inside = [p for group in optimizer.param_groups for p in group["params"]]
    length = gradient_size({str(i): p.grad for i, p in enumerate(inside)})[0] + EPS
    for p in inside:
        p.grad.div_(length)
        optimizer.state[p]["length"] = length


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
        elif setting.optimizer == "normalized_sgd":
            c = lr / state["length"]
        else:
            factor = 1 + setting.momentum if setting.nesterov else 1.0
            c = torch.tensor(lr * factor, dtype=p.dtype, device=p.device)
        p.copy_(prox(name, u, c))
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"].add_((u - p) / (c if setting.optimizer == "sgd" else lr))
