"""The penalties of single weights: l1, l2 and their mixture."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


def scaled(lam: Tensor, size: Tensor) -> Tensor:
    """lam * size, but 0 at lam = 0 even where size has overflowed to infinity."""
    return torch.where(lam > 0, lam * size, torch.zeros_like(size))


def soft_threshold(w: Tensor, threshold: Tensor) -> Tensor:
    """sign(w) * max(|w| - threshold, 0), and exactly w at threshold 0."""
    return w - torch.clamp(w, -threshold, threshold)


class L1(NamedTuple):
    """lam * ||w||_1. Its gradient at 0 is 0.

    prox: soft-thresholding at step * lam. Tibshirani (1996),
    doi:10.1111/j.2517-6161.1996.tb02080.x
    """

    lam: Float[Tensor, ""]

    def value(self, w: Float[Tensor, "*w"]) -> Float[Tensor, ""]:
        return scaled(self.lam, w.abs().sum())

    def prox(self, w: Float[Tensor, "*w"], step: Tensor) -> Float[Tensor, "*w"]:
        return soft_threshold(w, step * self.lam)


class L2(NamedTuple):
    """lam / 2 * ||w||_2^2; lam is then torch's weight_decay.

    prox: w / (1 + step * lam). Hoerl and Kennard (1970), doi:10.1080/00401706.1970.10488634
    """

    lam: Float[Tensor, ""]

    def value(self, w: Float[Tensor, "*w"]) -> Float[Tensor, ""]:
        return scaled(self.lam, (w * w).sum() / 2)

    def prox(self, w: Float[Tensor, "*w"], step: Tensor) -> Float[Tensor, "*w"]:
        return w / (1 + step * self.lam)


class ElasticNet(NamedTuple):
    """lam * (l1_ratio * ||w||_1 + (1 - l1_ratio) / 2 * ||w||_2^2).

    prox: soft-thresholding, then shrinking. Zou and Hastie (2005),
    doi:10.1111/j.1467-9868.2005.00503.x
    """

    lam: Float[Tensor, ""]
    l1_ratio: Float[Tensor, ""]

    @property
    def parts(self) -> tuple[L2, L1]:
        return L2(self.lam * (1 - self.l1_ratio)), L1(self.lam * self.l1_ratio)

    def value(self, w: Float[Tensor, "*w"]) -> Float[Tensor, ""]:
        l2, l1 = self.parts
        return l2.value(w) + l1.value(w)

    def prox(self, w: Float[Tensor, "*w"], step: Tensor) -> Float[Tensor, "*w"]:
        l2, l1 = self.parts
        return l2.prox(l1.prox(w, step), step)
