"""The temporal-order task: which two of the symbols X and Y came, and in which order.

A sequence of distractors a, b, c, d holds one of X, Y in its second tenth and one in its fifth;
the class is one of XX, XY, YX, YY (Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735,
task 6a, with the positions of Pascanu et al. 2013, arXiv 1211.5063).
"""

import numpy as np

SYMBOLS = "XYabcd"


def sequences(
    n_sequences: int = 1250, length: int = 20, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """X (n, length, 6), one-hot; y (n,) the class as text."""
    rng = np.random.default_rng(seed)
    symbols = rng.integers(2, 6, (n_sequences, length))
    rows = np.arange(n_sequences)
    pair = rng.integers(0, 2, (n_sequences, 2))
    tenth = length // 10
    symbols[rows, rng.integers(tenth, 2 * tenth, n_sequences)] = pair[:, 0]
    symbols[rows, rng.integers(4 * tenth, 5 * tenth, n_sequences)] = pair[:, 1]
    names = np.array(["XX", "XY", "YX", "YY"])
    return np.eye(6)[symbols], names[2 * pair[:, 0] + pair[:, 1]]
