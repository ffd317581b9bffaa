"""Two tasks that need a memory over half of a sequence: temporal order, and adding.

Temporal order: a sequence of distractors a, b, c, d holds one of X, Y in its second tenth and one
in its fifth; the class is one of XX, XY, YX, YY. Adding: two of a sequence's numbers are marked,
one in its first tenth and one in the four after it; the target is their mean. Hochreiter and
Schmidhuber (1997), doi:10.1162/neco.1997.9.8.1735, tasks 6a and 4, with the positions of Pascanu
et al. (2013), arXiv 1211.5063. A study names a task at a length: `order_50`, `adding_20`.
"""

from functools import partial

import numpy as np

SYMBOLS = "XYabcd"
N_SEQUENCES = 2500


def sequences(
    n_sequences: int = N_SEQUENCES, length: int = 20, seed: int = 0
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


def numbers(
    n_sequences: int = N_SEQUENCES, length: int = 20, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """X (n, length, 2): marks 0 or 1, numbers from 0 to 1; y (n,) the mean of the marked ones."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(size=(n_sequences, length))
    rows = np.arange(n_sequences)
    tenth = length // 10
    first = rng.integers(0, tenth, n_sequences)
    second = rng.integers(tenth, 5 * tenth, n_sequences)
    marks = np.zeros_like(values)
    marks[rows, first] = marks[rows, second] = 1.0
    return np.stack([marks, values], 2), (values[rows, first] + values[rows, second]) / 2


LENGTHS = (20, 30, 40, 50, 100)
order_20, order_30, order_40, order_50, order_100 = (partial(sequences, length=n) for n in LENGTHS)
adding_20, adding_30, adding_40, adding_50, adding_100 = (
    partial(numbers, length=n) for n in LENGTHS
)
