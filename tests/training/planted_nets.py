"""Networks with one layer made to blow up first: python:planted_nets:NAME in a study."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Planted(nn.Module):
    """Two linear layers and a linear head, in a row. The planted one computes a W x + b, with
    weights that start a times smaller: the same outputs, of a gradient a times and of a curvature
    a^2 times as large. Or its gradient is not a number once one of its outputs is above `limit`,
    which changes no output.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_outputs: int,
        planted: str,
        a: float = 1.0,
        limit: float | None = None,
        width: int = 5,
    ):
        super().__init__()
        self.planted, self.a, self.limit = planted, a, limit
        widths = self.widths(input_shape[-1], n_outputs, width)
        for name, (before, after) in widths.items():
            layer = nn.Linear(before, after)
            if name == planted:
                with torch.no_grad():
                    layer.weight.div_(a)
            setattr(self, name, layer)

    def widths(self, n_features: int, n_outputs: int, width: int) -> dict[str, tuple[int, int]]:
        return {
            "first": (n_features, width),
            "second": (width, width),
            "head": (width, n_outputs),
        }

    def apply_layer(self, name: str, x: Tensor) -> Tensor:
        layer = getattr(self, name)
        z = F.linear(x, layer.weight * (self.a if name == self.planted else 1.0), layer.bias)
        if name == self.planted and self.limit is not None:
            z = z + 0 * ((self.limit - z) * (z < self.limit)).sqrt()
        return z

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "head"):
            x = self.apply_layer(name, x)
        return x


class PlantedRecurrence(Planted):
    """The same of h' = reads(x) + recurs(h), and a head on the last h."""

    def widths(self, n_features: int, n_outputs: int, width: int) -> dict[str, tuple[int, int]]:
        return {
            "reads": (n_features, width),
            "recurs": (width, width),
            "head": (width, n_outputs),
        }

    def forward(self, x: Tensor) -> Tensor:
        h = self.apply_layer("reads", x[:, 0])
        for t in range(1, x.shape[1]):
            h = self.apply_layer("reads", x[:, t]) + self.apply_layer("recurs", h)
        return self.apply_layer("head", h)
