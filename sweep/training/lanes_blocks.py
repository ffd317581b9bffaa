"""How many lanes a block of a compiled step has: found out by training."""

from __future__ import annotations

BLOCKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TRIES = 6
"""Chunks of steps that a size is tried for."""
NEAR, FAR = 0.99, 0.85
"""Times of which the less is so large a part of the other are the same, or as different as need
be known."""


class Blocks:
    """Which block size takes least time: each is tried, and no result depends on it.

    Small ones stay in a core's own cache, large ones make the most of each call. What a size took
    is a chunk's seconds of all cores together, of which other work that runs meanwhile takes none.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lanes = 0
        """As many as there were when trying began."""
        self._seconds: dict[int, list[float]] = {}

    def size(self, lanes: int) -> int:
        """For the next chunk of so many lanes."""
        # Each thread is to have a block.
        most = max(2, -(-lanes // self.threads))
        if lanes >= 2 * self._lanes:
            self._lanes = lanes
            self._seconds = {size: [] for size in (*(b for b in BLOCKS if b < most), most)}
        fit = {size: taken for size, taken in self._seconds.items() if size <= most}
        best = min((min(taken) for taken in fit.values() if taken), default=0.0)
        to_try = [
            (len(taken), size)
            for size, taken in fit.items()
            if len(taken) < TRIES and (not taken or min(taken) <= best / FAR)
        ]
        if to_try:
            return min(to_try)[1]
        # Of those that are as good the smallest: others need the cache too.
        return min(size for size, taken in fit.items() if min(taken) <= best / NEAR)

    def took(self, size: int, seconds: float) -> None:
        """A lane's step took so many seconds of a core, in blocks of this size."""
        if size in self._seconds:
            self._seconds[size].append(seconds)
