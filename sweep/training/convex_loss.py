"""The training loss of a linear model on one fold, in double precision, for the exact solver.

f(w) = mean over the fold's training rows of (row weight * loss), as `loss_per_sample` has it, of
design weights w (K, P). Every function takes any axes in front of (K, P), one model or many.

The design X (n, P) are the features; their weighted mean is taken off where the bias is free,
which changes no prediction (the bias makes up for it) and much of the conditioning. A free bias
of a regression is then the target's mean and needs no column; any other bias is a last column
of ones.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sweep.problem.losses import loss_per_sample
from sweep.training.experiment import Experiment

LEAST_SHARE = 1e-9
"""Of a class that a fold's training rows lack; its bias would start at -infinity."""


BLOCKS = 4
"""Of columns, of which only those on and above the diagonal are multiplied."""


def dot(a: Float[Tensor, "*L K P"], b: Float[Tensor, "*L K P"]) -> Float[Tensor, "*L"]:
    """<a, b> of every model."""
    return (a * b).sum((-2, -1))


class Design:
    """X (n, P), and the way back from design weights to the model's own."""

    def __init__(self, experiment: Experiment, fold: int, bias: str) -> None:
        """`bias`: `none`, `free` or `penalized`."""
        problem = experiment.problem
        rows = torch.from_numpy(problem.folds[fold].train)
        x = problem.x_of(fold)[rows].flatten(1).double()
        y = problem.y_of(fold)[rows]
        weights = experiment.row_weights[fold]
        self.kind, self.n_outputs = problem.kind, problem.n_outputs
        self.share = torch.full((len(rows),), 1.0, dtype=torch.float64)
        if weights is not None:
            given = weights[rows].double()
            self.share = given / given.mean()
        self.share /= len(rows)
        self.y = y if problem.kind == "multiclass" else y.double()
        self.n_features = x.shape[1]
        self.has_bias = bias != "none"
        self.centre = x.new_zeros(x.shape[1])
        self.offset = x.new_zeros(())
        if bias == "free":
            self.centre = self.share @ x
            x = x - self.centre
        if bias == "free" and problem.kind == "regression":
            self.offset = self.share @ self.y
            self.y = self.y - self.offset
        elif self.has_bias:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        self.x = x
        self.has_column = x.shape[1] > self.n_features

    def start(self, free_bias: bool) -> Float[Tensor, "K P"]:
        """No weight; a free bias fits the classes' shares."""
        w = torch.zeros(self.n_outputs, self.x.shape[1], dtype=torch.float64)
        if free_bias and self.has_column:
            labels = self.y.long()
            n_classes = max(2, self.n_outputs)
            shares = torch.zeros(n_classes, dtype=torch.float64).index_add_(0, labels, self.share)
            logs = shares.clamp(min=LEAST_SHARE).log()
            w[:, -1] = logs - logs.mean() if self.n_outputs > 1 else logs[1:] - logs[0]
        return w

    def model_weights(self, w: Float[Tensor, "*L K P"]) -> tuple[Tensor, Tensor | None]:
        """(weight (*L, K, D), bias (*L, K) or None) of the linear module."""
        weight = w[..., : self.n_features]
        if not self.has_bias:
            return weight, None
        bias = w[..., -1] if self.has_column else self.offset.expand(weight.shape[:-1])
        return weight, bias - weight @ self.centre


def second_moments(x: Float[Tensor, "n P"]) -> Float[Tensor, "P P"]:
    """X'X, symmetric to the last bit, for little more than half of a product's arithmetic."""
    found = x.new_empty(x.shape[1], x.shape[1])
    for columns in torch.arange(x.shape[1]).chunk(BLOCKS):
        begin, end = int(columns[0]), int(columns[-1]) + 1
        part = x[:, begin:end].T @ x[:, begin:]
        found[begin:end, begin:] = part
        found[begin:, begin:end] = part.T
    return found


class GramLoss:
    """Squared error from G = X'X / n and c = X'y / n: f(w) = <w, Gw> / 2 - <c, w> + constant.

    Here and in `RowsLoss`: `image` is linear in w; `slope` is what `gradient` is made of;
    `noise` (P,) bounds the sums whose rounding the gradient at 0 cannot be told from; `flops` are
    those of one image and one gradient.
    """

    def __init__(self, design: Design) -> None:
        scaled = design.x * design.share.sqrt().unsqueeze(1)
        self.gram = second_moments(scaled)
        self.c = (design.x.T @ (design.share * design.y)).unsqueeze(0)
        self.constant = (design.share * design.y**2).sum() / 2
        self.noise = (2 * self.constant * self.gram.diagonal()).sqrt()
        self.flops = 2.0 * self.gram.numel()

    def image(self, w: Tensor) -> Tensor:
        flat = w.reshape(-1, w.shape[-1]) @ self.gram
        return flat.view(w.shape)

    def slope(self, image: Tensor) -> Tensor:
        return image - self.c

    def gradient(self, slope: Tensor) -> Tensor:
        return slope

    def curvature(
        self, d: Tensor, image: Tensor, slope: Tensor, new_image: Tensor
    ) -> Float[Tensor, "*L"]:
        """<d, gradient(w + d) - gradient(w)>, without the cancellation of two values of f, from
        the image and the slope at w and the image at w + d.
        """
        return dot(d, new_image - image)

    def value(self, w: Float[Tensor, "K P"], image: Tensor) -> Float[Tensor, ""]:
        return (w * (image / 2 - self.c)).sum((-2, -1)) + self.constant

    def hessian(self, image: Tensor, active: Bool[Tensor, "K P"]) -> Float[Tensor, "A A"]:
        """Of one model, over the active coordinates, row by row."""
        columns = active[0].nonzero().squeeze(1)
        return self.gram.index_select(0, columns).index_select(1, columns)

    def hessian_flops(self, active: int) -> float:
        return 4.0 * active**2


class RowsLoss:
    """Any loss of the rows' outputs: image = w X', (*L, K, n)."""

    def __init__(self, design: Design) -> None:
        self.kind, self.share, self.y = design.kind, design.share, design.y
        self.x, self.x_t = design.x, design.x.T.contiguous()
        self.flops = 4.0 * design.n_outputs * self.x.numel()
        if self.kind == "multiclass":
            classes = torch.arange(design.n_outputs).unsqueeze(1)
            self.target = (self.y == classes).double()
        else:
            self.target = self.y.unsqueeze(0)
        self.noise = self.x.abs().T @ (self.share * self.target.abs().sum(0))

    def image(self, w: Tensor) -> Tensor:
        flat = w.reshape(-1, w.shape[-1]) @ self.x_t
        return flat.view(*w.shape[:-1], flat.shape[-1])

    def mean(self, image: Tensor) -> Tensor:
        """What the rows' targets are compared to: outputs, or probabilities."""
        if self.kind == "regression":
            return image
        return image.softmax(-2) if self.kind == "multiclass" else image.sigmoid()

    def slope(self, image: Tensor) -> Tensor:
        return (self.mean(image) - self.target) * self.share

    def gradient(self, slope: Tensor) -> Tensor:
        flat = slope.reshape(-1, slope.shape[-1]) @ self.x
        return flat.view(*slope.shape[:-1], flat.shape[-1])

    def curvature(self, d: Tensor, image: Tensor, slope: Tensor, new_image: Tensor) -> Tensor:
        return dot(new_image - image, self.slope(new_image) - slope)

    def value(self, w: Float[Tensor, "K P"], image: Tensor) -> Float[Tensor, ""]:
        return (loss_per_sample(self.kind, image.T, self.y) * self.share).sum()

    def hessian(self, image: Tensor, active: Tensor) -> Tensor:
        if self.kind != "multiclass":
            p = self.mean(image)[0]
            bend = self.share if self.kind == "regression" else self.share * p * (1 - p)
            scaled = self.x[:, active[0]] * bend.sqrt().unsqueeze(1)
            return scaled.T @ scaled
        # X_k' diag(p_k) X_k within a class, and -X_k' diag(p_k p_l) X_l between all of them.
        p = self.mean(image)
        classes, columns = active.nonzero(as_tuple=True)
        mixed = self.x_t[columns] * (p * self.share.sqrt())[classes]
        found = -(mixed @ mixed.T)
        begin = 0
        for k, count in enumerate(active.sum(1).tolist()):
            own = self.x_t[active[k]] * (p[k] * self.share).sqrt()
            found[begin : begin + count, begin : begin + count] += own @ own.T
            begin += count
        return found

    def hessian_flops(self, active: int) -> float:
        return 2.0 * len(self.x) * active**2


FoldLoss = GramLoss | RowsLoss


def make_loss(design: Design) -> FoldLoss:
    """Squared error goes by the Gram matrix where that is the smaller one."""
    n, p = design.x.shape
    if design.kind == "regression" and p < 2 * n:
        return GramLoss(design)
    return RowsLoss(design)
