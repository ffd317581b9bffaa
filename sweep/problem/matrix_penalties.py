"""Penalties of a whole matrix: of its largest singular value, and of being far from orthogonal.

A tensor is the matrix w.flatten(1): a convolution's filters are its rows. Vectors and numbers are
no matrices and are not penalized. Both penalties are smooth and enter through the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sweep.problem.elastic_net import scaled

SQUARINGS = 8


class Spectral(NamedTuple):
    """lam / 2 * s^2, s the largest singular value. Yoshida and Miyato (2017), arXiv 1705.10941.

    Its gradient is lam * s * u v', u and v the singular vectors of s. They are found as in the
    paper by the power method, with 2^SQUARINGS iterations at once: the Gram matrix of the shorter
    side is squared that often. Where the next singular value is within 1% of s, the value may be
    low by up to 0.2% a such neighbour.
    """

    lam: Float[Tensor, ""]

    def value(self, w: Float[Tensor, "*w"]) -> Float[Tensor, ""]:
        if w.ndim < 2:
            return torch.zeros_like(self.lam * w.sum())
        m = _wide(w, self.lam)
        return scaled(self.lam, ((_projector(m.detach()) @ m) * m).sum() / 2)


class Orthogonal(NamedTuple):
    """lam / 4 * ||M M' - I||_F^2, M the matrix or, where it has more rows than columns, M'.

    It is 0 iff all singular values are 1; its gradient is lam * (M M' - I) M. Vorontsov et al.
    (2017), arXiv 1702.00071; Brock et al. (2017), arXiv 1609.07093, who sum absolute values.
    """

    lam: Float[Tensor, ""]

    def value(self, w: Float[Tensor, "*w"]) -> Float[Tensor, ""]:
        if w.ndim < 2:
            return torch.zeros_like(self.lam * w.sum())
        m = _wide(w, self.lam)
        rest = m @ m.mT - torch.eye(len(m), dtype=m.dtype, device=m.device)
        return scaled(self.lam, rest.square().sum() / 4)


def _wide(w: Tensor, lam: Tensor) -> Float[Tensor, "n m"]:
    """The matrix with its shorter side first; 0 at lam = 0, where no overflow may matter."""
    m = w.flatten(1)
    m = m.mT if m.shape[0] > m.shape[1] else m
    return torch.where(lam > 0, m, torch.zeros_like(m))


def _projector(m: Float[Tensor, "n m"]) -> Float[Tensor, "n n"]:
    """u u', or the mean of such where several singular values are the largest; 0 for a zero m."""
    if len(m) == 1:
        return torch.ones_like(m[:, :1])
    # Dividing by the largest entry keeps squares in range.
    largest = m.abs().amax()
    m = m / torch.where(largest > 0, largest, 1.0)
    gram = m @ m.mT
    # Scaled at every second squaring: the loop is unrolled where the step is compiled.
    for _ in range(SQUARINGS // 2):
        square = gram @ gram
        # The trace of the square's square.
        size = square.square().sum()
        gram = square @ square / torch.where(size == 0, 1.0, size)
    return gram
