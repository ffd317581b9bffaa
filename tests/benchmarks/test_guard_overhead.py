"""What `sweep.watch` costs a step of a network of ResNet-18's size on the CPU.

    pytest -m benchmark -n 0 -s tests/benchmarks/test_guard_overhead.py

Steps with and without a check take turns, so that what else the machine does meets both; the
check alone is timed inside its steps.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch import Tensor, nn

import sweep

pytestmark = pytest.mark.benchmark


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18() -> nn.Module:
    """He et al. (2016, arXiv 1512.03385) for 32 x 32 images: 11.2 million parameters."""
    widths = (64, 64, 128, 128, 256, 256, 512, 512)
    blocks, before = [], 64
    for width in widths:
        blocks.append(Block(before, width, 1 if width == before else 2))
        before = width
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def test_a_check_costs_less_than_3_percent_of_a_step() -> None:
    torch.manual_seed(0)
    model = resnet18()
    size = sum(p.numel() for p in model.parameters())
    assert 11e6 < size < 12e6
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    guard = sweep.watch(model, optimizer)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    steps, checks = [], []
    for _ in range(14):
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        between = time.perf_counter()
        guard.check(loss)
        after = time.perf_counter()
        optimizer.step()
        checks.append(after - between)
        steps.append(time.perf_counter() - began - checks[-1])
    step, check = (statistics.median(values[3:]) for values in (steps, checks))
    print(
        f"\nResNet-18, {size / 1e6:.1f} M parameters, batch 16, {torch.get_num_threads()} threads: "
        f"step {1e3 * step:.0f} ms, check {1e3 * check:.2f} ms: {check / step:.2%}"
    )
    assert check / step < 0.03
