"""The pure update is torch.optim's, step by step; batches and rates are as promised."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from sweep.problem.regularizers import L1
from sweep.spec import load_spec
from sweep.training import batches
from sweep.training.batches import BatchOrders
from sweep.training.clipping import Clips, clip, clip_in_place
from sweep.training.member import Member, Plan, learning_rate_at, make_plan
from sweep.training.optimizers import (
    Rule,
    make_torch_optimizer,
    new_moments,
    numbers,
    proximal_step,
    rule_of,
    update,
)

from .test_engines_agree import CLIPPING, OPTIMIZERS
from .trials import BASE, experiment, merge

NONE, ALL = Clips(*[False] * 4), Clips(*[True] * 4)


def setting_of(**train):
    study = merge(BASE, regularizer="l1", lam=0.05, train={"learning_rate": 0.1, **train})
    return load_spec(study).spec.setting({})


@pytest.mark.parametrize("clipping", [{}, *CLIPPING.values()], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("has_prox", [False, True])
def test_update_is_torchs_own(optimizer, clipping, has_prox):
    setting = setting_of(**OPTIMIZERS[optimizer], **clipping)
    torch.manual_seed(0)
    module = nn.Linear(4, 3).double()
    names = ["weight"]
    penalty = L1(torch.tensor(0.05, dtype=torch.float64))

    def prox(name, u, step):
        return penalty.prox(u, step)

    parameters = {n: p.detach().clone() for n, p in module.named_parameters()}
    moments = new_moments(parameters, setting.optimizer, ALL)
    values = numbers(setting, torch.float64)
    optim = make_torch_optimizer(module, setting, names)
    norms_seen = []
    for step in range(7):
        gradient = {n: torch.randn_like(p) * (1 + step) for n, p in parameters.items()}
        for name, p in module.named_parameters():
            p.grad = gradient[name].clone()
        clip_in_place(module.parameters(), setting, norms_seen)
        rate = 0.1 / (1 + step)
        for group in optim.param_groups:
            group["lr"] = rate
        optim.step()
        if has_prox:
            proximal_step(optim, module, setting, names, prox)

        norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
        clipped, norms = clip(gradient, norm, moments.norms, values.clip, ALL)
        parameters, moments = update(
            rule_of(setting),
            parameters,
            clipped,
            moments._replace(norms=norms),
            torch.tensor(rate, dtype=torch.float64),
            values,
            names,
            prox if has_prox else None,
        )
        for name, p in module.named_parameters():
            torch.testing.assert_close(parameters[name], p.detach(), rtol=1e-11, atol=1e-13)


def test_proximal_heavy_ball_is_heavy_ball_on_the_iterates():
    """u = w - lr*g + momentum*(w - w_prev), w = prox_{lr*lambda}(u)."""
    setting = setting_of(momentum=0.9)
    values, lr = numbers(setting, torch.float64), torch.tensor(0.1, dtype=torch.float64)
    penalty = L1(torch.tensor(0.3, dtype=torch.float64))
    w = torch.randn(20, dtype=torch.float64)
    parameters, moments, before = {"w": w}, new_moments({"w": w}, "sgd", NONE), w
    for _ in range(10):
        g = torch.randn_like(w)
        u = w - lr * g + 0.9 * (w - before)
        before, w = w, penalty.prox(u, lr)
        parameters, moments = update(
            Rule("sgd", False, False), parameters, {"w": g}, moments, lr, values, ["w"],
            lambda name, u, step: penalty.prox(u, step),
        )  # fmt: skip
        torch.testing.assert_close(parameters["w"], w, rtol=1e-12, atol=1e-12)


def steps_of(setting, gradients, w):
    """w before and after each update along these gradients."""
    moments, values = new_moments({"w": w}, setting.optimizer, NONE), numbers(setting, w.dtype)
    path = [w]
    for g in gradients:
        new, moments = update(
            rule_of(setting), {"w": path[-1]}, {"w": g}, moments,
            torch.tensor(setting.learning_rate, dtype=w.dtype), values, ["w"], None,
        )  # fmt: skip
        path.append(new["w"])
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_normalised_step_has_the_learning_rates_length_whatever_the_gradients(dtype):
    """Hazan et al. (2015). In float32 the square of 1e30 has no place; the step has."""
    generator = torch.Generator().manual_seed(0)
    sizes = [1e-3, 1.0, 1e4, 1e30]
    gradients = [torch.randn(5, generator=generator, dtype=dtype) * size for size in sizes]
    w = torch.zeros(5, dtype=dtype)
    path = steps_of(setting_of(optimizer="normalized_sgd"), gradients, w)
    for before, after, g in zip(path, path[1:], gradients, strict=False):
        assert float((after - before).norm()) == pytest.approx(0.1, rel=2e-5)
        assert float(torch.cosine_similarity(before - after, g / g.abs().max(), dim=0)) > 0.9999


def test_decoupled_decay_shrinks_weights_beside_the_step():
    """w <- (1 - lr * decay) * w - lr * m, the momentum m of the loss's gradient alone."""
    setting = setting_of(momentum=0.9, weight_decay=0.5, decoupled_weight_decay=True)
    gradients = [torch.randn(4, dtype=torch.float64) for _ in range(6)]
    w = torch.randn(4, dtype=torch.float64)
    m = torch.zeros(4, dtype=torch.float64)
    path = steps_of(setting, gradients, w)
    for g, found in zip(gradients, path[1:], strict=True):
        m = 0.9 * m + g
        w = (1 - 0.1 * 0.5) * w - 0.1 * m
        torch.testing.assert_close(found, w)


def test_adam_with_decoupled_decay_is_adamw():
    decay = {"weight_decay": 0.01}
    decoupled = setting_of(optimizer="adam", decoupled_weight_decay=True, **decay)
    assert decoupled == setting_of(optimizer="adamw", **decay)
    assert decoupled != setting_of(optimizer="adam", **decay)


def plan_of(setting, **changes):
    exp = experiment(merge(BASE, **changes))
    return exp, make_plan(exp.problem, exp.spec, Member(0, 0, setting), rows_interact=False)


@pytest.mark.parametrize(
    "train, scheduler",
    [
        ({"schedule": "cosine"}, lambda o, p: lr_scheduler.CosineAnnealingLR(o, p.steps)),
        (
            {"schedule": {"kind": "step", "every": 1, "factor": 0.5}},
            lambda o, p: lr_scheduler.StepLR(o, p.steps_per_epoch, 0.5),
        ),
        ({"schedule": "constant"}, lambda o, p: lr_scheduler.ConstantLR(o, 1.0)),
    ],
    ids=["cosine", "step", "constant"],
)  # fmt: skip
def test_learning_rates_are_those_of_torchs_schedulers(train, scheduler):
    setting = setting_of(**train)
    _, plan = plan_of(setting)
    optim = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=setting.learning_rate)
    schedule = scheduler(optim, plan)
    for step in range(plan.steps):
        rate = float(learning_rate_at(step, setting, plan))
        assert rate == pytest.approx(optim.param_groups[0]["lr"], rel=1e-9)
        optim.step()
        schedule.step()


def test_warm_up_rises_to_the_learning_rate():
    setting = setting_of(warmup=2)
    _, plan = plan_of(setting)
    rates = learning_rate_at(np.arange(plan.steps), setting, plan)
    warm = 2 * plan.steps_per_epoch
    np.testing.assert_allclose(rates[:warm], 0.1 * np.arange(1, warm + 1) / warm)
    assert (rates[warm:] == 0.1).all()


def test_an_epoch_visits_every_training_row_once_and_keeps_the_short_batch():
    exp, plan = plan_of(setting_of())
    orders = BatchOrders(exp, 16)
    place = orders.acquire(0, 0, plan)
    again = orders.acquire(0, 0, plan)
    other = orders.acquire(0, 1, plan)
    assert place == again != other
    n = len(plan.train)
    rows = orders.batches[place].flatten()
    assert sorted(rows[:n].tolist()) == sorted(plan.train.tolist())
    assert plan.steps_per_epoch == -(-n // 16)
    short = n % 16
    padding = rows[n : n + 16 - short]
    assert (padding == rows[n - short]).all()


def test_row_orders_are_kept_while_there_is_room(monkeypatch):
    """The place longest out of use is given away first, one in use never."""
    exp, plan = plan_of(setting_of())
    drawn = []
    monkeypatch.setattr(Plan, "rows_of", lambda plan, *at: (drawn.append(at), plan.train[::-1])[1])
    monkeypatch.setattr(batches, "KEPT_ROWS", 3 * plan.steps_per_epoch * 16)
    orders = BatchOrders(exp, 16)
    first, second, third = (orders.acquire(0, epoch, plan) for epoch in range(3))
    orders.release(second)
    orders.release(third)
    assert orders.acquire(0, 2, plan) == third
    assert len(drawn) == 3
    orders.release(third)
    assert orders.acquire(0, 3, plan) == second
    assert orders.acquire(0, 2, plan) == third
    assert orders.acquire(0, 4, plan) not in (first, second, third)
    assert len(drawn) == 5
