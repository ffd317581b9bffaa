"""A smooth probability of divergence, with the number of trials that it rests on."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST_EVIDENCE = 1.0
"""Below the weight of one trial on the spot, nothing is said."""
SHARES = (1.0, 0.5, 0.25)
"""Of Scott's bandwidth, tried on each axis."""
JUDGED = 400
"""Trials, evenly spread over their numbers, by which the bandwidths are judged."""


class Smooth(NamedTuple):
    """`share` is NaN where `evidence`, the weight of the trials around, is below one trial."""

    share: Array
    evidence: Array


def smooth_share(places: Array, diverged: Array, asked: Array) -> Smooth:
    """The share that diverged around each place asked for: a kernel regression.

    p(x) = sum_i K(x - x_i) y_i / sum_i K(x - x_i), K(d) = exp(-sum_j (d_j / b_j)² / 2); the
    evidence is sum_i K(x - x_i), in trials. Nadaraya (1964), doi:10.1137/1109020; Watson (1964).
    `places` (N, D) and `asked` (M, D) are logarithms, `diverged` (N,) is 0 or 1. The bandwidths
    b are, for each axis, the share of Scott's rule sd_j N^(-1/(D+4)) that predicts every trial
    best from the others (leave-one-out log-likelihood).
    """
    scott = places.std(axis=0) * len(places) ** (-1 / (places.shape[1] + 4))
    # One value on an axis: what lies within a tenth of a decade of it.
    scott = np.where(scott > 1e-6, scott, 0.1)
    inverse = _best(places / scott, diverged)
    weights = _kernel(_squares(asked / scott, places / scott), inverse)
    evidence = weights.sum(axis=1)
    share = np.full(len(asked), np.nan)
    known = evidence >= LEAST_EVIDENCE
    share[known] = weights[known] @ diverged / evidence[known]
    return Smooth(share, evidence)


def _best(places: Array, diverged: Array) -> Array:
    """Of each axis 1 / share², of those shares of the bandwidth that predict best."""
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), JUDGED)).astype(int))
    y = diverged[chosen]
    squares = _squares(places[chosen], places[chosen])
    best, most = np.ones(places.shape[1]), -np.inf
    for shares in itertools.product(SHARES, repeat=places.shape[1]):
        inverse = 1 / np.square(shares)
        weights = _kernel(squares, inverse)
        np.fill_diagonal(weights, 0.0)
        # A trial alone is predicted by the share of all.
        p = (weights @ y + 0.1 * y.mean()) / (weights.sum(axis=1) + 0.1)
        p = np.clip(p, 0.01, 0.99)
        likelihood = float(np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)))
        if likelihood > most + 1e-9:
            best, most = inverse, likelihood
    return best


def _squares(a: Array, b: Array) -> Array:
    """(D, len(a), len(b)): squared distances, an axis each."""
    return np.square(a.T[:, :, None] - b.T[:, None, :])


def _kernel(squares: Array, inverse: Array) -> Array:
    return np.asarray(np.exp(-0.5 * np.tensordot(inverse, squares, axes=1)))
