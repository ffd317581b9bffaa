"""The loss that training minimises, for one model."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["regression", "binary", "multiclass"]


def loss_per_sample(
    kind: str, outputs: Float[Tensor, "B K"], y: Shaped[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The loss of each row; L_data is its mean over the batch.

    regression   (f - y)^2 / 2, which makes lambda scikit-learn's Lasso alpha
    binary       log(1 + exp(-f)) for y = 1 and log(1 + exp(f)) for y = 0, one logit f
    multiclass   -log softmax(f)_y, K logits, y in 0..K-1
    """
    if kind == "regression":
        return (outputs[:, 0] - y.to(outputs.dtype)) ** 2 / 2
    if kind == "binary":
        target = y.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs[:, 0], target, reduction="none")
    assert kind == "multiclass", kind
    # Written out, as the compiler makes two passes less of it than of F.cross_entropy.
    shifted = outputs - outputs.detach().amax(1, keepdim=True)
    is_y = y.long().unsqueeze(1) == torch.arange(outputs.shape[1], device=y.device)
    return shifted.exp().sum(1).log() - torch.where(is_y, shifted, 0.0).sum(1)
