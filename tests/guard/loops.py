"""Small trainings with a known end, for the guard's tests."""

import torch
from torch import nn

import sweep

H = 4.0
"""Curvature of `quadratic`: gradient descent on it is stable below 2 / H."""


class Planted(nn.Module):
    """Three linear layers side by side; one may be planted to explode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 1) for _ in range(3))
        self.spare = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x) + self.third(x)


def quadratic(dtype: torch.dtype = torch.float64) -> nn.Linear:
    """H/2 * (w - 1)^2 is the loss of `loss_of`."""
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.zeros_(model.weight)
    return model


def loss_of(model: nn.Linear) -> torch.Tensor:
    return H / 2 * (model.weight - 1).square().sum()


def descend(model, optimizer, guard, steps, loss=loss_of):
    """The failure of plain training, None if it goes well."""
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        try:
            guard.check(value)
        except sweep.Diverged as diverged:
            return diverged.failure
        optimizer.step()
    guard.flush()
    return None


def batch(n: int = 32, d: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    return x, x[:, :1] - 0.5 * x[:, 1:2]


def squared(model: nn.Module) -> torch.Tensor:
    x, y = batch()
    return (model(x) - y).square().mean() / 2
