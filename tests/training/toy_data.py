"""Small data sets that the training tests name as python:toy_data:NAME."""

import os
import signal
import time

import numpy as np
import torch
from torch import Tensor, nn


def rows(n=62, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(n, d))


def three_classes():
    rng, x = rows()
    y = (x @ rng.normal(size=(5, 3)) + 0.5 * rng.normal(size=(62, 3))).argmax(1)
    return x, y


def two_classes():
    rng, x = rows()
    return x, (x @ rng.normal(size=5) + rng.normal(size=62) > 0).astype(int)


def numbers():
    rng, x = rows()
    return x, x @ np.array([1.0, -2.0, 0.0, 0.0, 0.5]) + 0.3 * rng.normal(size=62)


def weighted():
    rng, x = rows()
    return {"X": x, "y": x[:, 0] + 0.3 * rng.normal(size=62), "weights": rng.uniform(0.1, 3, 62)}


def even_folds():
    x, y = three_classes()
    return {"X": x, "y": y, "folds": np.arange(62) % 2}


def uneven_folds():
    x, y = three_classes()
    return {"X": x, "y": y, "folds": (np.arange(62) % 4 > 0).astype(int)}


def images():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(48, 1, 6, 6))
    return x, (x[:, 0, :3].mean((1, 2)) > x[:, 0, 3:].mean((1, 2))).astype(int)


def sequences():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(48, 7, 3))
    return x, x[:, -1, 0] - x[:, 2, 1]


class Residual(nn.Module):
    def __init__(self, n_features: int, n_outputs: int, width: int = 6):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(n_features, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.2)
        )
        self.skip = nn.Linear(n_features, width)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x) + self.skip(x))


class Normalized(nn.Module):
    """As little as has buffers: quickly compiled."""

    def __init__(self, n_features: int, n_outputs: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(n_features, affine=False)
        self.head = nn.Linear(n_features, n_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


class Grouped(nn.Module):
    """A convolution of few channels and one with groups, on `images`."""

    def __init__(self, n_outputs: int):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 2, 3, stride=2, groups=2, bias=False)
        self.head = nn.Linear(2 * 2 * 2, n_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).flatten(1))


class LooksAtDataOnceTrained(nn.Module):
    def __init__(self, n_features: int, n_outputs: int):
        super().__init__()
        self.head = nn.Linear(n_features, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        return y if self.training or bool(y.detach().isfinite().all()) else y + 1


class LooksAtData(Residual):
    """Cannot be batched: what it computes depends on a number it reads out."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean().item() > 0:
            return super().forward(x)
        return super().forward(2 * x)


class BreaksLate(Residual):
    """Raises once a weight is large."""

    def forward(self, x: Tensor) -> Tensor:
        if float(self.head.weight.abs().max()) > 3:
            raise RuntimeError("the head is too large")
        return super().forward(x)


class Cauchy:
    """A user's regularizer without a prox: lam * sum log(1 + w^2)."""

    def __init__(self, lam: Tensor):
        self.lam = lam

    def value(self, w: Tensor) -> Tensor:
        return self.lam * torch.log1p(w * w).sum()


def _diabetes():
    from sklearn.datasets import load_diabetes
    from sklearn.preprocessing import StandardScaler

    x, y = load_diabetes(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    return x, (y - y.mean()) / y.std()


def diabetes_twice():
    """Two copies, one a fold: each fold trains on all 442 rows, standardised with ddof 0."""
    x, y = _diabetes()
    return {"X": np.vstack([x, x]), "y": np.tile(y, 2), "folds": np.repeat([0, 1], len(y))}


def separable_twice():
    """Two classes, twice, one copy a fold."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 3))
    y = (x[:, 0] > 0).astype(int)
    return {"X": np.vstack([x, x]), "y": np.tile(y, 2), "folds": np.repeat([0, 1], 40)}


class Scaled(nn.Module):
    """Rows are scaled by their batch."""

    def __init__(self, n_features: int, n_outputs: int):
        super().__init__()
        self.head = nn.Linear(n_features, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x - x.mean(0)) / (x.std(0) + 1e-3))


class RunningMean(Scaled):
    """A buffer changed in place by what the batch holds, and used."""

    def __init__(self, n_features: int, n_outputs: int):
        super().__init__(n_features, n_outputs)
        self.register_buffer("mean", torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0).detach())
        return self.head(x - self.mean)


class LateMean(RunningMean):
    """The same, where training itself does not look at the buffer."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0).detach())
            return self.head(x)
        return self.head(x - self.mean)


class Reassigned(RunningMean):
    """Cannot be batched: the buffer is another tensor afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return self.head(x - self.mean)


class Counts(Scaled):
    """Cannot be batched: lanes would share the count."""

    def __init__(self, n_features: int, n_outputs: int):
        super().__init__(n_features, n_outputs)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(x) * (1 + 1 / self.calls)


class CutOff(Scaled):
    """Nothing to learn from."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).detach()


class Unused(Scaled):
    """Parameters that no output depends on."""

    def __init__(self, n_features: int, n_outputs: int):
        super().__init__(n_features, n_outputs)
        self.idle = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class Leaves(Scaled):
    """Ends the process, or would."""

    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit(0)


def instance_norm(n_features: int, n_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, n_features)),
        nn.InstanceNorm1d(1, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(n_features, n_outputs),
    )


class SoftThreshold:
    """lam * ||w||_1."""

    def __init__(self, lam: Tensor):
        self.lam = lam

    def value(self, w: Tensor) -> Tensor:
        return self.lam * w.abs().sum()

    def prox(self, w: Tensor, step: Tensor) -> Tensor:
        return torch.sign(w) * torch.relu(w.abs() - step * self.lam)


class InPlace(SoftThreshold):
    """The same, in place."""

    def prox(self, w: Tensor, step: Tensor) -> Tensor:
        sign = torch.sign(w)
        return w.abs_().sub_(step * self.lam).relu_().mul_(sign)


class OneRow(SoftThreshold):
    """Its prox has the wrong shape."""

    def prox(self, w: Tensor, step: Tensor) -> Tensor:
        return super().prox(w, step)[0]


class NoNumber:
    """Its value is no single number."""

    def __init__(self, lam: Tensor):
        self.lam = lam

    def value(self, w: Tensor) -> Tensor:
        return self.lam * w.abs()


def leaves() -> None:
    raise SystemExit(0)


class Wide(Scaled):
    """Two outputs too many."""

    def __init__(self, n_features: int, n_outputs: int):
        super().__init__(n_features, n_outputs + 2)


class Pair(Scaled):
    """Two things at once."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), x


def Empty() -> nn.Module:
    return nn.Identity()


def ordered():
    """Two classes, one a fold of their own: the ROC AUC of a fold is undefined."""
    _, x = rows(40)
    return {"X": x, "y": np.repeat([0, 1], 20), "folds": np.repeat([0, 1], 20)}


class Dies(Residual):
    """Ends its process, past all handlers, once a weight is large."""

    def forward(self, x: Tensor) -> Tensor:
        if float(self.head.weight.abs().max()) > 3:
            os._exit(3)
        return super().forward(x)


class Crashes(Residual):
    """The same, by a segmentation fault."""

    def forward(self, x: Tensor) -> Tensor:
        if float(self.head.weight.abs().max()) > 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().forward(x)


class Slow(LooksAtData):
    """Takes its time."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return super().forward(x)


def wide():
    """More columns than rows."""
    rng, x = rows(30, 80)
    return x, x[:, :5] @ rng.normal(size=5)


class NotANumber(SoftThreshold):
    """From lambda 1 on."""

    def prox(self, w: Tensor, step: Tensor) -> Tensor:
        new = super().prox(w, step)
        return torch.where(self.lam < 1, new, torch.nan)


class Convolution(nn.Module):
    """A transposed convolution, which PyTorch maps over models as one with a group a model."""

    def __init__(self, n_outputs):
        super().__init__()
        self.convolution = nn.ConvTranspose2d(1, 3, 3)
        self.head = nn.Linear(3, n_outputs)

    def forward(self, x):
        return self.head(self.convolution(x).mean((2, 3)))


class Branches(Residual):
    """Cannot be batched: control flow on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else 2 * x)


class Selects(Residual):
    """Cannot be batched: how many rows there are is up to the data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[x[:, 0] > -1e9])


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return 2 * gradient


class OwnOperator(Scaled):
    """Cannot be batched: an operator that torch.func knows nothing of."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(_Double.apply(x))


class LeavesTorch(Scaled):
    """Cannot be batched: goes through NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.from_numpy(np.tanh(x.numpy())))


class WritesInto(Scaled):
    """Cannot be batched: a tensor of its own is changed in place."""

    def forward(self, x: Tensor) -> Tensor:
        own = torch.zeros(x.shape, dtype=x.dtype)
        own.add_(x)
        return self.head(own)
