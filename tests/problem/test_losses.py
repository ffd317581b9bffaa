"""The training loss against scikit-learn's metrics."""

from __future__ import annotations

import pytest
import torch
from scipy.special import expit, softmax
from sklearn.metrics import log_loss, mean_squared_error
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from sweep.problem.losses import loss_per_sample

KINDS = {"regression": 1, "binary": 1, "multiclass": 4}


def rows(kind: str, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(n, KINDS[kind], generator=generator, dtype=torch.float64)
    if kind == "regression":
        return outputs, torch.randn(n, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(max(2, KINDS[kind]), (n,), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_loss_is_the_published_one(kind: str):
    outputs, y = rows(kind)
    expected = {
        "regression": lambda: mean_squared_error(y, outputs[:, 0]) / 2,
        "binary": lambda: log_loss(y, expit(outputs[:, 0].numpy())),
        "multiclass": lambda: log_loss(y, softmax(outputs.numpy(), axis=1)),
    }[kind]()
    losses = loss_per_sample(kind, outputs, y)
    assert losses.shape == y.shape
    assert float(losses.mean()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_vmapped_loss_and_gradient_equal_looped(kind: str):
    outputs, y = rows(kind, 30)
    outputs, y = outputs.view(3, 10, -1), y.view(3, 10)

    def mean(f: Tensor, y: Tensor) -> Tensor:
        return loss_per_sample(kind, f, y).mean()

    looped = torch.stack([grad(mean)(outputs[i], y[i]) for i in range(3)])
    torch.testing.assert_close(vmap(grad(mean))(outputs, y), looped)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_large_logits_keep_a_finite_loss(kind: str):
    outputs, y = rows(kind)
    assert torch.isfinite(loss_per_sample(kind, outputs.float() * 1e30, y)).all()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e30, 1e300])
def test_the_loss_of_classes_and_its_gradient_are_torchs(size: float):
    outputs, y = rows("multiclass")
    outputs = outputs * size

    def total(f: Tensor) -> Tensor:
        return loss_per_sample("multiclass", f, y).sum()

    expected = F.cross_entropy(outputs, y, reduction="none")
    torch.testing.assert_close(loss_per_sample("multiclass", outputs, y), expected)
    by_torch = grad(lambda f: F.cross_entropy(f, y, reduction="sum"))(outputs)
    torch.testing.assert_close(grad(total)(outputs), by_torch)


@pytest.mark.parametrize("logit", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("label", [0, 1])
def test_the_loss_of_classes_is_finite_where_torchs_is(logit: float, label: int):
    outputs, y = torch.tensor([[logit, 1.0, 2.0]]), torch.tensor([label])
    found, expected = loss_per_sample("multiclass", outputs, y), F.cross_entropy(outputs, y)
    torch.testing.assert_close(found[0], expected, equal_nan=True)
