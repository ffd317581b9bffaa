"""A network of one's own: residual blocks with batch normalization (He et al. 2016,
doi:10.1109/CVPR.2016.90), on flat features.
"""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """x + dropout(W2 relu(norm(W1 x))): what a block learns is added to what it was given."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.outer(torch.relu(self.norm(self.inner(x)))))


def build(n_features: int, n_outputs: int, width: int, depth: int, dropout: float) -> nn.Module:
    """The data decide n_features and n_outputs, the study file decides the rest."""
    blocks = [Block(width, dropout) for _ in range(depth)]
    return nn.Sequential(
        nn.Linear(n_features, width), *blocks, nn.ReLU(), nn.Linear(width, n_outputs)
    )
